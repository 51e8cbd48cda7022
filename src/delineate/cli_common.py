"""What the verbs of the command line share: flags that several have, and how numbers are shown."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

Format = Annotated[
    str | None,
    Parameter(help="png, coco, yolo, voc, cityscapes, labelme or object_masks. Default: recognised."),
]
Device = Annotated[str | None, Parameter(help="auto, cpu, cuda, cuda:1 or mps.")]
Precision = Annotated[Literal["auto", "fp32", "bf16", "fp16"] | None, Parameter(help="Arithmetic of the network.")]
Flips = Annotated[bool, Parameter(negative="", help="Average over mirrored pictures: slower, a little better.")]
Scales = Annotated[
    list[float] | None,
    Parameter(
        help="Predict at these scales, 1 among them: --scales 0.5 1 2; averaged, unless the network attends to scales.",
        negative="",
        consume_multiple=True,
    ),
]
Quiet = Annotated[bool, Parameter(negative="", help="Print errors only.")]
JsonFile = Annotated[
    Path | None,
    Parameter(
        name="--json",
        allow_leading_hyphen=True,
        help="Also write the numbers to this file; - prints them instead of the table.",
    ),
]


def show(content: Any, json: Path | None, print_table: Any) -> None:
    """Print the table, and write the JSON; with `--json -` the JSON takes the table's place."""
    if json is not None and str(json) == "-":
        print(json_module.dumps(content, indent=2))
        return
    if print_table is not None:
        print_table()
    if json is not None:
        from delineate.files import write_json

        write_json(json, content)
