"""The memory that a benchmark takes."""

from __future__ import annotations

import threading
from types import TracebackType

import psutil

MEGABYTE = 1 << 20


class PeakMemory:
    """The largest resident memory of this process within the context, above `baseline` bytes (by default what it is now)."""

    def __init__(self, baseline: int | None = None, interval: float = 0.01) -> None:
        self.process, self.interval = psutil.Process(), interval
        self.baseline = self.process.memory_info().rss if baseline is None else baseline
        self.peak = 0
        self._ended = threading.Event()

    def __enter__(self) -> PeakMemory:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._sample()  # what is shorter than the interval is seen too
        self._ended.set()
        self._thread.join()

    @property
    def above(self) -> int:
        return self.peak - self.baseline

    def _watch(self) -> None:
        while not self._ended.wait(self.interval):
            self._sample()

    def _sample(self) -> None:
        self.peak = max(self.peak, self.process.memory_info().rss)
