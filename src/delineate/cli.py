"""The command line: one thin function per verb. Nothing heavy is imported before a verb runs, so that help answers at once."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, CycloptsError, Group, Parameter

import delineate
from delineate.cli_common import Device, Flips, Format, JsonFile, Precision, Quiet, Scales, show
from delineate.cli_scoring import evaluate_, score
from delineate.cli_weights import weights_app
from delineate.errors import ConfigError, DelineateError

if TYPE_CHECKING:
    from delineate.config import TrainConfig

app = App(
    name="delineate",
    version=delineate.__version__,
    suppress_keyboard_interrupt=False,  # `run` says so itself
    help_format="plaintext",  # saves importing a Markdown parser: help answers in about 0.2 s
    help="Outline things in images: train, run and measure segmentation models.",
    help_epilogue="Start with `delineate demo`, then `delineate train --data YOUR_FOLDER`.",
)
data_app = App(name="data", help="Check, describe, show and convert data sets.")
app.command(data_app)
app.command(weights_app)
app.command(evaluate_, name="eval")
app.command(score)

KeyValue = Annotated[
    list[str],
    Parameter(
        name="--set",
        help="Set any key of the config: --set optimizer.lr=0.01. Repeatable.",
        negative="",
        consume_multiple=False,
    ),
]

MODEL_HELP = "A name of `delineate models`, or a file of weights to start from."

overrides = Group("Overrides", help="These win over the config file and over the plan.", sort_key=5)


@app.command
def demo(
    out: Annotated[Path, Parameter(help="Folder for data, run and report.")] = Path("delineate-demo"),
    *,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Train on one part of a real picture, predict and score the other, and write a report to look at."""
    from delineate.demo import run_demo

    run_demo(out, device=device or "auto", quiet=quiet)


@data_app.command
def check(data: Path, *, format: Format = None, json: JsonFile = None, quiet: Quiet = False) -> int:
    """Find what would break or spoil a training: damaged files, wrong labels, leaks between splits. Exit code 3 on errors.

    Parameters
    ----------
    data
        Folder or annotation file.
    """
    from delineate.data import check_dataset

    report = check_dataset(data, format)
    show(report.to_json(), json, None if quiet else report.print)
    return 3 if report.errors else 0


@data_app.command
def stats(data: Path, *, format: Format = None, json: JsonFile = None) -> None:
    """Describe a data set: sizes, intensities, classes, objects.

    Parameters
    ----------
    data
        Folder or annotation file.
    """
    from delineate.data import dataset_statistics, open_dataset

    statistics = dataset_statistics(open_dataset(data, format))
    show(statistics.to_json(), json, statistics.print)


@data_app.command
def preview(data: Path, *, out: Path = Path("preview"), count: int = 16, format: Format = None) -> None:
    """Draw the truth over some pictures, to see whether it was read as you meant it.

    Parameters
    ----------
    data
        Folder or annotation file.
    out
        Folder for the drawings.
    count
        How many pictures, evenly spread over the splits.
    """
    from delineate.data import open_dataset, preview_dataset

    written = preview_dataset(open_dataset(data, format), out, count)
    print(f"{len(written)} pictures in {out}")


@data_app.command
def convert(
    data: Path, out: Path, *, to: str, format: Format = None, allow_loss: Annotated[bool, Parameter(negative="")] = False
) -> None:
    """Write a data set in another format; what that format cannot hold is listed before anything is written.

    Parameters
    ----------
    data
        Folder or annotation file.
    out
        New folder.
    to
        png, coco, yolo, voc, cityscapes or labelme.
    allow_loss
        Convert even if something will be lost.
    """
    from delineate.data import conversion_losses, open_dataset, write_dataset

    dataset = open_dataset(data, format)
    losses = conversion_losses(dataset, to)
    for loss in losses:
        print(f"lost in {to}: {loss}", file=sys.stderr)
    if losses and not allow_loss:
        raise ConfigError(f"{data}: {to} cannot hold all of it (above); add --allow-loss to convert anyway, or choose coco")
    write_dataset(dataset, out, to)
    print(f"{len(dataset.records)} pictures written to {out}")


@app.command
def plan(
    data: Path,
    *,
    out: Annotated[Path | None, Parameter(help="Write the plan as a config for `delineate train`.")] = None,
    model: Annotated[str | None, Parameter(help=MODEL_HELP)] = None,
    minutes: Annotated[
        float | None, Parameter(help="Length of the training. Default: 15 on a CPU, a full schedule on a GPU.")
    ] = None,
    format: Format = None,
    device: Device = None,
    json: JsonFile = None,
) -> None:
    """Propose model, patch, batch, augmentation, loss and schedule from the data, each with its reason.

    Parameters
    ----------
    data
        Folder or annotation file.
    """
    from delineate.data import open_dataset
    from delineate.files import write_text
    from delineate.train.planner import plan as make_plan

    proposal = make_plan(open_dataset(data, format), path=data, device=device or "auto", minutes=minutes, model=model)
    show(proposal.to_json(), json, proposal.print)
    if out is not None:
        write_text(out, proposal.to_yaml())
        print(f"written to {out}; train with: delineate train {out}")


@app.command
def train(
    config: Annotated[Path | None, Parameter(help="A YAML config; without one, the plan of --data is used.")] = None,
    *,
    data: Annotated[Path | None, Parameter(help="Folder or annotation file.")] = None,
    out: Annotated[Path | None, Parameter(help="New run folder. Default: runs/DATA-MODEL.")] = None,
    resume: Annotated[Path | None, Parameter(help="Go on with this run folder; --epochs may extend it.")] = None,
    model: Annotated[str | None, Parameter(help=MODEL_HELP, group=overrides)] = None,
    minutes: Annotated[float | None, Parameter(help="Length of a planned training.", group=overrides)] = None,
    epochs: Annotated[int | None, Parameter(group=overrides)] = None,
    format: Annotated[Format, Parameter(group=overrides)] = None,
    device: Annotated[Device, Parameter(group=overrides)] = None,
    devices: Annotated[int | None, Parameter(help="Processes on this machine.", group=overrides)] = None,
    precision: Annotated[Precision, Parameter(group=overrides)] = None,
    seed: Annotated[int | None, Parameter(group=overrides)] = None,
    deterministic: Annotated[
        bool | None, Parameter(help="Same seed, same weights, bit for bit; slower.", group=overrides)
    ] = None,
    settings: Annotated[KeyValue, Parameter(group=overrides)] = [],  # noqa: B006  cyclopts copies it
    quiet: Quiet = False,
) -> None:
    """Train a network; stop it at any moment and go on with --resume."""
    from delineate.config import load_config, parse_override

    flags = {
        "epochs": epochs,
        "data.path": data,
        "data.format": format,
        "device": device,
        "devices": devices,
        "precision": precision,
        "seed": seed,
        "deterministic": deterministic,
    }
    changed: dict[str, Any] = {key: value for key, value in flags.items() if value is not None}
    changed |= dict(parse_override(text) for text in settings)
    proposal = None
    if resume is not None:
        if config is not None or out is not None:
            raise ConfigError("--resume goes on in its own folder with its own config; leave CONFIG and --out away")
        resolved = load_config(resume / "config.yaml", changed | _named(model))
    elif config is not None:
        resolved = load_config(config, changed | _named(model))
    elif data is not None:
        proposal, resolved = _planned(data, format, device, minutes, model, changed, quiet)
    else:
        raise ConfigError("nothing to train on: give --data FOLDER, a config file, or --resume RUN")
    from delineate.train.start import adopt

    resolved = adopt(resolved)
    out = resume or out or Path("runs") / f"{resolved.data.path.resolve().stem}-{resolved.model.name}"

    from delineate.train import train as run_training

    result = run_training(resolved, out, resume=resume is not None, quiet=quiet, plan=proposal)
    if not quiet and result.report is not None:  # None: torchrun's first process speaks
        print(f"\nreport   {result.report}\nweights  {result.best}")
        print(f"try      delineate predict {result.best} PICTURES --out predictions")


def _named(model: str | None) -> dict[str, Any]:
    """What `--model` sets in a config."""
    if model is None:
        return {}
    from delineate.train.start import is_weights

    return {"model.weights" if is_weights(model) else "model.name": model}


def _planned(
    data: Path,
    format: str | None,
    device: str | None,
    minutes: float | None,
    model: str | None,
    changed: dict[str, Any],
    quiet: bool,
) -> tuple[Any, TrainConfig]:
    """Plan the training of `data` and lay the flags over the plan."""
    from delineate.config import build_config
    from delineate.data import open_dataset
    from delineate.train.planner import plan as make_plan
    from delineate.train.start import is_weights

    # A wrong flag is told now, not after the plan is made.
    asked = build_config({}, {"data.path": data} | changed, source="flags").model
    dataset, model = open_dataset(data, format), model or changed.get("model.name")
    proposal = make_plan(dataset, path=data, device=device or "auto", minutes=minutes, model=model, options=asked.options)
    if not quiet:
        proposal.print()
        planned = ("data.",) if asked.weights or is_weights(model or "") else ("data.", "model.name", "model.options.")
        if instead := [f"{key} {value}" for key, value in changed.items() if not key.startswith(planned)]:
            print(f"instead, as asked for: {', '.join(instead)}")
    return proposal, build_config(proposal.config.model_dump(mode="json"), changed, source="flags")


@app.command
def predict(
    weights: Path,
    source: Path,
    *,
    out: Path,
    objects: Annotated[
        Literal["auto", "none", "components", "watershed", "border", "distance"],
        Parameter(help="How single objects are told apart; auto: as the weights were trained."),
    ] = "auto",
    formats: Annotated[
        list[str], Parameter(help="What to write: png, overlay, coco, yolo, labelme.", consume_multiple=True)
    ] = ["png", "overlay"],  # noqa: B006
    flips: Flips = False,
    scales: Scales = None,
    window: Annotated[
        int | None, Parameter(help="Side of the windows that pictures are cut into. Default: 1024 x 1024 whole, larger in 512.")
    ] = None,
    overlap: Annotated[float, Parameter(help="Share of a window that its neighbour predicts too.")] = 0.25,
    score_threshold: Annotated[float, Parameter(help="Objects with a lower score are left out.")] = 0.5,
    min_area: Annotated[int, Parameter(help="Pixels of the smallest object that is kept.")] = 10,
    compile: Annotated[bool, Parameter(negative="", help="Use torch.compile: worth its wait for many pictures.")] = False,
    device: Device = None,
    precision: Precision = None,
    quiet: Quiet = False,
) -> int:
    """Segment pictures of any size, or find the objects in them.

    Parameters
    ----------
    weights
        A .safetensors file of `delineate train` or `delineate weights import`.
    source
        A picture, a folder or a quoted glob.
    out
        Folder for the results.
    """
    from delineate.predict import Predictor, predict_folder

    predictor = Predictor(
        weights,
        device=device or "auto",
        precision=precision or "auto",
        score_threshold=score_threshold,
        window=window,
        overlap=overlap,
        flips=flips,
        scales=scales,
        objects=objects,
        min_area=min_area,
        compile=compile,
    )
    failures = predict_folder(predictor, source, out, formats=tuple(formats), quiet=quiet)
    return 3 if failures else 0


@app.command
def models(*names: str, json: JsonFile = None) -> None:
    """List the networks NAMES, or all, with parameters and multiply-adds (a GFLOP here counts a multiply-add as two)."""
    from dataclasses import asdict

    from delineate.models.complexity import model_table, print_model_table

    rows = model_table(names or None)
    show([asdict(row) for row in rows], json, lambda: print_model_table(rows))


def main() -> None:
    """Run the command line and exit: 0 done, 1 failure, 2 wrong usage or config, 3 bad data, 130 interrupted."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code; an expected error ends in one line on stderr."""
    try:
        result = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except CycloptsError as error:
        return _fail(f"{' '.join(str(error).split())} (see delineate --help)", ConfigError.exit_code)
    except DelineateError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:  # the reader of our output, such as `head`, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (MemoryError, OSError) as error:
        return _fail(_explain_system_error(error), 1)
    except RuntimeError as error:
        if "out of memory" not in str(error) and "can't allocate memory" not in str(error):
            raise
        return _fail("out of memory; lower --set batch=... or --set augment.patch=..., or give predict a smaller --window", 1)


def _explain_system_error(error: MemoryError | OSError) -> str:
    if isinstance(error, MemoryError):
        return "out of memory; lower --set batch=... or --set augment.patch=..., or give predict a smaller --window"
    return f"{error.filename or 'the system'}: {error.strerror or error}"


def _fail(message: str, code: int) -> int:
    print(f"delineate: {message}", file=sys.stderr)
    return code
