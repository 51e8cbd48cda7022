"""What a run says while it goes on: a progress bar on a terminal, one plain line an epoch elsewhere, and TensorBoard."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress


class Display:
    """Progress for people: use as a context manager, around the training of `epochs` epochs of `steps` optimiser steps each.

    On a terminal, a bar with the state of the epoch, and a line for each that is finished; elsewhere only the lines; nothing
    at all when `quiet`.
    """

    def __init__(self, *, epochs: int, steps: int, done: int, monitor: str, quiet: bool) -> None:
        self.epochs, self.steps, self.total, self.monitor, self.quiet = epochs, steps, epochs * steps, monitor, quiet
        self._start: tuple[float, int] | None = None  # time and steps, when the first step was done
        console = Console(quiet=quiet)
        self._bar: RichProgress | None = None
        if console.is_terminal and not quiet:
            columns = (
                BarColumn(bar_width=24),
                TextColumn("[progress.percentage]{task.percentage:>3.0f}%"),
                TextColumn("{task.description}"),
            )
            self._bar = RichProgress(*columns, console=console, transient=True)
            self._task = self._bar.add_task("starting", total=self.total, completed=done)

    def __enter__(self) -> Display:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self, epoch: int, done: int, loss: float, images_per_second: float, memory: float) -> None:
        """Show the state within an epoch; `done` steps of the run are."""
        self._start = self._start or (time.monotonic(), done)
        if self._bar is not None:
            text = self._text(epoch, loss, None, images_per_second, memory, done)
            self._bar.update(self._task, completed=done, description=text)

    def epoch(self, row: dict[str, Any], done: int) -> None:
        """Print the line of a finished epoch."""
        metric = row.get(f"val/{self.monitor}")
        self.note(self._text(row["epoch"], row["train/loss"], metric, row["images_per_second"], row["memory_mb"], done))

    def note(self, text: str) -> None:
        """Print one line."""
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, flush=True)

    def _text(self, epoch: int, loss: float, metric: float | None, speed: float, memory: float, done: int) -> str:
        width = len(str(self.epochs))
        parts = [f"epoch {epoch:>{width}}/{self.epochs}", f"loss {loss:.4f}"]
        parts += [f"{self.monitor} {metric:.4f}"] if metric is not None else []
        parts += [f"{speed:.1f} images/s"] if math.isfinite(speed) else []
        parts += [f"{memory:.0f} MB"]
        if self._start is not None and self._start[1] < done < self.total:
            start, first = self._start
            parts.append(f"{_clock((time.monotonic() - start) / (done - first) * (self.total - done))} left")
        return "  ".join(parts)


class TensorBoard:
    """Writes the numbers of each epoch as TensorBoard events, if that package is installed; says so once if it is not."""

    def __init__(self, folder: Path, *, enabled: bool, step: int, display: Display) -> None:
        self._writer: Any = None
        if not enabled:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            display.note("no TensorBoard events: install delineate[tensorboard], or set tensorboard: false")
            return
        self._writer = SummaryWriter(str(folder), purge_step=step or None)

    def epoch(self, row: dict[str, Any]) -> None:
        """Write the numbers of an epoch at its step."""
        if self._writer is None:
            return
        for name, value in row.items():
            if isinstance(value, float) and math.isfinite(value):
                self._writer.add_scalar(name, value, row["step"])
        self._writer.flush()

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.close()


def peak_memory(device: torch.device) -> float:
    """Return the most memory, in MB, that this process has held: on a GPU that of its tensors, else of main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 2**20
    if sys.platform == "linux":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return psutil.Process().memory_info().rss / 2**20


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
