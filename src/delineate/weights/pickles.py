"""Reading the weight files of other libraries without running the code that may be in them.

Most are pickles, and a pickle is a program. Here one may only build numbers, texts, plain containers, arrays and tensors; the
first other thing that it names ends the reading, before anything of it has run.
"""

from __future__ import annotations

import io
import pickle
import re
import warnings
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from delineate.errors import DataError

ZIP = b"PK\x03\x04"  # torch.save since 1.6
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before: a pickled magic number comes first
WRAPPERS = ("state_dict", "model_state_dict", "model", "blobs", "net")
"""Where checkpoints keep their tensors beside epochs, optimisers and the like; the first that is there is taken."""


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a weight file of any library, by their names.

    Reads files of torch.save, old and new, safetensors, and pickles of NumPy arrays, also those of Python 2 (Detectron2's and
    Detectron1's .pkl). A prefix `module.` that all names have, which DataParallel leaves, is taken off. Raises `DataError` for
    a file that is missing, damaged, holds no tensors, or that would run code if it were unpickled without restriction.
    """
    path = Path(path)
    return _tensors(path, read_content(path))


def read_content(path: str | Path) -> Any:
    """Return all that a weight file holds, as plain containers, arrays and tensors; raises `DataError` as `read_state` does."""
    path = Path(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; give a weight file, its URL, or the name of a published one") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give a weight file") from error
    if content[8:9] == b"{":
        return _read_safetensors(path, content)
    if content.startswith(ZIP) or content.startswith(LEGACY):
        return _read_torch(path, content)
    return _read_pickle(path, content)


def _read_safetensors(path: Path, content: bytes) -> dict[str, Tensor]:
    try:
        return load_safetensors(content)
    except SafetensorError as error:
        raise DataError(f"{path}: is a damaged safetensors file ({_line(error)}); get it again") from error


def _read_torch(path: Path, content: bytes) -> Any:
    """Read a file of torch.save by torch's own restricted unpickler, to which scalars of NumPy and flags are added."""
    allowed = [(found, name) for name, found in _NUMPY.items()]
    try:
        with torch.serialization.safe_globals([*allowed, Namespace]), warnings.catch_warnings(action="ignore"):
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL (\S+)", str(error))
        if name is None:
            raise DataError(f"{path}: is not a weight file that can be read safely ({_line(error)})") from error
        raise _refusal(path, name[1]) from error
    except Exception as error:  # a damaged archive raises whatever its first wrong byte leads to
        raise DataError(f"{path}: is damaged or no weight file of PyTorch ({_line(error)}); get it again") from error


def _read_pickle(path: Path, content: bytes) -> Any:
    try:
        return _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
    except _RefusedError as error:
        raise _refusal(path, str(error)) from error
    except Exception as error:  # as above
        expected = "a file of torch.save, safetensors, or a pickle of arrays"
        raise DataError(f"{path}: is damaged or no weight file ({_line(error)}); expected {expected}") from error


class _RefusedError(Exception):
    """A pickle named something that is neither an array nor a plain container."""


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise _RefusedError(f"{module}.{name}")
        found = _ALLOWED[module, name]
        return lambda *arguments: found(*arguments)  # a new function each time, so that a pickle can change none of ours


class _NumberType:
    """In place of numpy.dtype, whose own state a pickle could forge: a type of numbers, or None for any other."""

    def __init__(self, code: str, *_: Any) -> None:
        self.dtype = np.dtype(code) if re.fullmatch(r"[<>|=]?[fiub][0-9]{1,2}", code) else None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if self.dtype is not None and state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """In place of numpy.ndarray, for the same reason: numbers made of bytes; None where it held texts or objects."""

    values: np.ndarray | None = None

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, content = state
        if kind.dtype is not None:
            self.values = np.frombuffer(_bytes(content), kind.dtype).reshape(shape, order="F" if fortran else "C")


def _from_buffer(content: Any, kind: _NumberType, shape: Any, order: str) -> _Array:
    """An array as pickles of protocol 5 spell it."""
    array = _Array()
    array.__setstate__((1, shape, kind, order == "F", content))
    return array


def _scalar(kind: _NumberType, content: Any = b"") -> Any:
    return None if kind.dtype is None else np.frombuffer(_bytes(content), kind.dtype)[0].item()


def _encode(text: str, encoding: str) -> bytes:
    """Bytes, as pickles of protocol 2 spell them."""
    if encoding != "latin1":
        raise _RefusedError(f"_codecs.encode({encoding!r})")
    return text.encode("latin1")


def _bytes(content: Any) -> bytes:
    return content.encode("latin1") if isinstance(content, str) else bytes(content)  # texts: bytes of Python 2


_PLACES = ("numpy.core", "numpy._core")  # NumPy 1 and 2
_NUMPY: dict[str, Callable[..., Any]] = {
    "numpy.ndarray": _Array,
    "numpy.dtype": _NumberType,
    **{f"{place}.multiarray._reconstruct": _Array for place in _PLACES},
    **{f"{place}.multiarray.scalar": _scalar for place in _PLACES},
    **{f"{place}.numeric._frombuffer": _from_buffer for place in _PLACES},
}
_PLAIN = {
    "collections.OrderedDict": OrderedDict,
    "_codecs.encode": _encode,
    "builtins.set": set,
    "__builtin__.set": set,
}
_ALLOWED = {tuple(name.rsplit(".", 1)): found for name, found in (_NUMPY | _PLAIN).items()}


def _tensors(path: Path, content: Any) -> dict[str, Tensor]:
    """The tensors of a checkpoint, found in the first wrapper that is there."""
    wrapper = next((key for key in WRAPPERS if isinstance(content, Mapping) and isinstance(content.get(key), Mapping)), None)
    holder = content if wrapper is None else content[wrapper]
    if not isinstance(holder, Mapping):
        raise DataError(f"{path}: holds {type(holder).__name__}, expected named tensors")
    state = {str(name): tensor for name, value in holder.items() if (tensor := _tensor(value)) is not None}
    if not state:
        keys = ", ".join(sorted(map(str, holder))[:8]) or "nothing"
        raise DataError(
            f"{path}: holds no tensors (it has {keys}); expected a state dict, alone or under {', '.join(WRAPPERS)}"
        )
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return state


def _tensor(value: Any) -> Tensor | None:
    """A tensor of numbers, or None for anything else that a checkpoint holds."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, _Array) and value.values is not None:
        values = value.values
        return torch.from_numpy(values.astype(values.dtype.newbyteorder("=")))  # a copy: what was read may not be written
    return None


def _refusal(path: Path, name: str) -> DataError:
    return DataError(
        f"{path}: refused, because reading it would call {name}, which is neither an array nor a plain container; "
        "nothing of it was run. Save its state dict alone, as safetensors or with torch.save"
    )


def _line(error: Exception) -> str:
    """The first sentence of an error, on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else f"{text[:160]} ..."
