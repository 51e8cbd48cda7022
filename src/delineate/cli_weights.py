"""The verbs of other libraries' weights: `weights import` and `weights show`."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from delineate.cli_common import JsonFile, Quiet, show
from delineate.errors import ConfigError

weights_app = App(name="weights", help="Make weights of other libraries ours, and show what a weight file holds.")

Sha256 = Annotated[str | None, Parameter(help="Of the file behind a URL: 64 digits, or any to take whatever comes.")]


@weights_app.command(name="import")
def import_(
    file: str,
    out: Annotated[Path | None, Parameter(help="Default: the name of FILE with .safetensors, here.")] = None,
    *,
    source: Annotated[
        str | None, Parameter(help="The library, such as torchvision or detectron2. Default: recognised.")
    ] = None,
    arch: Annotated[str | None, Parameter(help="The network, as the library calls it. Default: recognised.")] = None,
    num_classes: Annotated[
        int | None, Parameter(help="Without a background that the library counts. Default: as in FILE.")
    ] = None,
    classes: Annotated[
        list[str] | None,
        Parameter(help="Names of the classes. Default: those of the library.", negative="", consume_multiple=True),
    ] = None,
    choices: Annotated[
        list[str],
        Parameter(
            name="--choice",
            help="What the tensors cannot tell: --choice norm_eps=0. Repeatable.",
            negative="",
            consume_multiple=False,
        ),
    ] = [],  # noqa: B006
    sha256: Sha256 = None,
    quiet: Quiet = False,
) -> None:
    """Make a weight file of another library ours: the same network, with its classes and what goes in and comes out.

    Nothing is guessed: where a file leaves open what it means, you are asked for it. No code in the file is run.

    Parameters
    ----------
    file
        A file, its URL, or the name of a published one, such as COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.
    """
    from delineate.weights import save_model
    from delineate.weights.importing import import_located
    from delineate.weights.published import locate

    out = out or Path(Path(file).stem + ".safetensors")
    if out.suffix != ".safetensors":
        raise ConfigError(f"OUT is {out}, expected a name that ends with .safetensors")
    located, published = locate(file, sha256, None if quiet else _print_progress)
    parsed = dict(_parse_choice(text) for text in choices)
    model: Any = import_located(located, published, source, arch, num_classes, classes=classes, **parsed)
    licence = published.licence if published else None
    save_model(model, out, classes=model.classes, conventions=model.conventions, extra=model.extra, licence=licence)
    if not quiet:
        imported = model.extra["imported"]
        print(f"{imported['arch']} of {imported['source']} is {model.architecture['name']}, classes: {len(model.classes)}")
        print(f"weights  {out}\ntry      delineate predict {out} PICTURES --out predictions")


@weights_app.command(name="show")
def show_(file: str, *, sha256: Sha256 = None, json: JsonFile = None, quiet: Quiet = False) -> None:
    """Say what a weight file is and holds, of whichever library. No code in the file is run.

    Parameters
    ----------
    file
        A file, its URL, or the name of a published one.
    """
    from delineate.weights.published import locate
    from delineate.weights.summary import summarize

    located, _ = locate(file, sha256, None if quiet else _print_progress)
    summary = summarize(located)
    show(summary.to_json(), json, summary.print)


def _parse_choice(text: str) -> tuple[str, Any]:
    """`norm_eps=0` as a name and a YAML value; YAML takes 1e-5 for a text, we do not."""
    import yaml

    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--choice is '{text}', expected NAME=VALUE")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--choice {text}: the value cannot be read") from error
    if isinstance(parsed, str):
        with suppress(ValueError):
            parsed = float(parsed)
    return name.strip(), parsed


def _print_progress(done: int, total: int | None) -> None:
    import sys

    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        of = f" of {total / 1e6:.0f}" if total else ""
        print(f"\r{done / 1e6:.0f}{of} MB", end=end, file=sys.stderr, flush=True)
