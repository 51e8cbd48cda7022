# make demo   set everything up, train on a real picture, and say where to look
# make test   set everything up, and run the test suite
# Needs Python >= 3.11 and nothing else. PYTHON=... chooses the interpreter, VENV=... the environment.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
NATIVE := native/CMakeLists.txt $(wildcard native/*.cpp native/*.hpp)
PIP := $(BIN)/python -m pip --disable-pip-version-check
WORKERS ?= $(shell $(PYTHON) -c "import os; print(min(8, len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()))")

.PHONY: demo test lint types docs benchmarks sanitize constraints clean help

help:
	@echo "make demo | test | lint | types | docs | sanitize | constraints | clean"

$(BIN)/python:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
		{ echo "$(PYTHON) is older than Python 3.11; name a newer one: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)

# One stamp an extra, so that `make demo` does not install what only the tests need. Installing builds the native kernels.
$(VENV)/.installed-%: $(BIN)/python pyproject.toml constraints.txt $(NATIVE)
	$(PIP) install --quiet --constraint constraints.txt --editable ".[$*]"
	@touch $@

demo: $(VENV)/.installed-tensorboard
	rm -rf delineate-demo
	$(BIN)/delineate demo --out delineate-demo

test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile $(ARGS)

lint: $(VENV)/.installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-lint $(VENV)/.installed-test
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx --fail-on-warning --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

# The kernels' tests with every access and every arithmetic checked. Needs CMake and GCC. Python itself leaks, so leaks are not looked for.
sanitize: $(VENV)/.installed-test
	$(PIP) install --quiet nanobind
	cmake -S native -B build/sanitize -DDELINEATE_SANITIZE=ON -DPython_EXECUTABLE=$(abspath $(BIN)/python)
	cmake --build build/sanitize --parallel
	OMP_NUM_THREADS=1 ASAN_OPTIONS=detect_leaks=0 DELINEATE_NATIVE=$$(echo build/sanitize/_native*.so) \
		LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" \
		$(BIN)/python -m pytest tests/test_native.py tests/test_roi.py tests/test_ops_nms.py tests/test_ops_masks.py \
		tests/test_ops_rle.py tests/test_ops_keypoints.py -k "not reference and not compile and not export and not rules"

# Pins what CI uses, from a fresh environment with the newest releases that pyproject.toml allows.
constraints:
	rm -rf $(VENV)-constraints && $(PYTHON) -m venv $(VENV)-constraints
	$(VENV)-constraints/bin/python -m pip install --quiet --editable ".[test,lint,docs]"
	{ echo "# What CI installs; made by \`make constraints\`. The package's own ranges are in pyproject.toml."; \
	  $(VENV)-constraints/bin/python -m pip freeze --exclude-editable | grep -v -i -E '^(nvidia-|cuda-)'; } > constraints.txt
	rm -rf $(VENV)-constraints

clean:
	rm -rf $(VENV) docs/_build .pytest_cache .ruff_cache build dist src/delineate/_native*
	cd native && rm -rf .cmake .ninja_* .skbuild-info.json CMakeCache.txt CMakeFiles CMakeInit.txt Makefile build.ninja *.a *.cmake
