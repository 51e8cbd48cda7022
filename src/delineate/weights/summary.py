"""What a weight file holds, ours or of another library, for people to read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from delineate.errors import DelineateError
from delineate.weights.files import WeightsInfo, is_own, read_info
from delineate.weights.importer import Importer, State
from delineate.weights.importing import choice_names, recognise
from delineate.weights.pickles import read_state


@dataclass(frozen=True, slots=True)
class Reading:
    """What a foreign file may be, and what the user may have to say about it.

    `note` is what an import would answer if nothing were said: what is asked for, or why the file is refused; "" if it is read.
    """

    source: str
    arch: str
    choices: tuple[str, ...]
    note: str


@dataclass(frozen=True, slots=True)
class Summary:
    """A weight file: `own` if it is ours, else its possible `readings`; then its tensors."""

    path: Path
    own: WeightsInfo | None
    readings: tuple[Reading, ...]
    tensors: Mapping[str, tuple[str, tuple[int, ...]]]  # name -> dtype, shape
    parameters: int

    def to_json(self) -> dict[str, Any]:
        return {
            "file": str(self.path),
            "delineate": None if self.own is None else asdict(self.own),
            "readings": [asdict(reading) for reading in self.readings],
            "parameters": self.parameters,
            "tensors": {name: {"dtype": dtype, "shape": list(shape)} for name, (dtype, shape) in self.tensors.items()},
        }

    def print(self) -> None:
        print(self.path)
        if self.own is not None:
            _print_own(self.own)
        for reading in self.readings:
            asked = f" (choices: {', '.join(reading.choices)})" if reading.choices else ""
            print(f"  could be {reading.arch} of {reading.source}{asked}")
        for note in dict.fromkeys(reading.note for reading in self.readings if reading.note):
            print(f"  {note}")
        if self.own is None and not self.readings:
            print("  of no library that is known")
        print(f"  {len(self.tensors)} tensors, {self.parameters:,} numbers")
        width = max(map(len, self.tensors))
        for name, (dtype, shape) in self.tensors.items():
            print(f"  {name:<{width}}  {dtype:<8} {' x '.join(map(str, shape)) or 'scalar'}")


def summarize(path: Path) -> Summary:
    """Read what a weight file holds; raises `DataError` as `read_state` does."""
    state = read_state(path)
    own = read_info(path) if is_own(path) else None
    readings = (
        ()
        if own
        else tuple(
            Reading(guess.importer.source, arch, tuple(choice_names(guess.importer)), _note(guess.importer, state, arch))
            for guess in recognise(state)
            for arch in guess.archs
        )
    )
    tensors = {name: _describe(tensor) for name, tensor in state.items()}
    return Summary(path, own, readings, tensors, sum(tensor.numel() for tensor in state.values()))


def _note(importer: Importer, state: State, arch: str) -> str:
    try:
        importer.convert(state, arch, None)
    except KeyError as error:
        return f"tensor {error} is missing"
    except DelineateError as error:
        return str(error)
    return ""


def _describe(tensor: Tensor) -> tuple[str, tuple[int, ...]]:
    return str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)


def _print_own(info: WeightsInfo) -> None:
    conventions = info.conventions
    print(f"  {info.architecture['name']} of delineate {info.version}, licence {info.licence or 'not stated'}")
    print(f"  {len(info.classes)} classes: {', '.join(info.classes[:12])}{' ...' if len(info.classes) > 12 else ''}")
    print(f"  takes {conventions.color}, gives {conventions.outputs}")
    for name, value in info.architecture["options"].items():
        print(f"    {name} = {value}")
    if "imported" in info.extra:
        imported = info.extra["imported"]
        print(f"  imported from {imported.get('source')}: {imported.get('arch')}")
