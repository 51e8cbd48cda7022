"""A run's settings in a few readable lines, each with the reason that the plan gave for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Config = dict[str, Any]
Rows = dict[str, tuple[tuple[str, ...], Callable[[Config], str]]]  # setting -> keys of the plan with its reasons, and its words


def describe_settings(config: Config, plan: Config, *, finds_objects: bool = False) -> list[dict[str, str]]:
    """Rows of `setting`, `value` and `because` for a resolved config; `because` is empty without a plan.

    A setting that differs from what the plan proposed says so. `finds_objects`: of a detector.
    """
    proposed: Config = plan.get("config") or {}
    described = _DETECTOR_ROWS if finds_objects else _ROWS
    reasons: dict[str, list[str]] = {setting: [] for setting in described}
    for key, reason in (plan.get("reasons") or {}).items():
        if owner := _owner(key, described):
            reasons[owner].append(sentence(reason))
    rows: list[dict[str, str]] = []
    for setting, (_, describe) in described.items():
        value = _described(describe, config)
        if not value:
            continue
        because = " ".join(dict.fromkeys(reasons[setting]))
        former = _described(describe, proposed)
        if former and former != value:
            because = f"Set by you; the plan proposed {former}."
        rows.append({"setting": setting, "value": value, "because": because})
    return rows


def _described(describe: Callable[[Config], str], config: Config) -> str:
    """The value of a row, or nothing where a config of another version has not what it needs."""
    try:
        return describe(config)
    except (KeyError, TypeError, ValueError, IndexError):
        return ""


def _owner(key: str, rows: Rows) -> str | None:
    """The row that a key of the plan belongs to: the one that names it most exactly."""
    fits = [(len(group), row) for row, (groups, _) in rows.items() for group in groups if f"{key}.".startswith(f"{group}.")]
    return max(fits)[1] if fits else None


def sentence(text: str) -> str:
    """The words with a capital at the beginning and a full stop at the end."""
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, list):
        return " to ".join(_plain(item) for item in value) if len(value) == 2 else ", ".join(_plain(item) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("_", " ")


def _data(config: Config) -> str:
    data = config["data"]
    return f"{data['path']}" + (f" ({data['format']})" if data.get("format") else "")


def _input(config: Config) -> str:
    entry = config["input"]
    norm = "each picture by its own mean and deviation" if entry["normalization"] == "image" else "by fixed mean and deviation"
    return f"{entry['color']}, normalised {norm}"


def _network(config: Config) -> str:
    model = config["model"]
    options = _plain(model["options"])
    start = f", started from {model['weights']}" if model.get("weights") else ""
    return f"{model['name']}{f' ({options})' if options else ''}, output: {model['outputs']}{start}"


def _augmentation(config: Config) -> str:
    off = (0, False, None, [1.0, 1.0], [])
    passed = ("patch", "foreground", "shortest", "jitter")
    used = {key: value for key, value in config["augment"].items() if key not in passed and value not in off}
    return "; ".join(f"{key.replace('_', ' ')} {_plain(value)}" for key, value in used.items()) or "none"


def _patch(config: Config) -> str:
    height, width = config["augment"]["patch"]
    share = config["augment"]["foreground"]
    return f"{height} × {width} pixels" + (f", {100 * share:.0f} % of them centred on a drawn class" if share else "")


def _loss(config: Config) -> str:
    terms: list[str] = []
    for term in config["loss"]:
        factor = "" if term["weight"] == 1 else f"{_plain(term['weight'])} × "
        options = f" ({_plain(term['options'])})" if term["options"] else ""
        terms.append(f"{factor}{_plain(term['name'])}{options}")
    return " + ".join(terms)


def _resizing(config: Config) -> str:
    """How a detector's pictures are resized."""
    entry, augment = config["input"]["resize"] or {"shortest": 800, "longest": 1333}, config["augment"]
    usual = f"shorter side to {entry['shortest']} pixels, longer one to at most {entry['longest']}"
    if augment["jitter"]:
        low, high = augment["jitter"]
        height, width = augment["patch"]
        return (
            f"{usual}; in training {_plain(low)} to {_plain(high)} times {height} × {width}, cut to that (large-scale jitter)"
        )
    if augment["shortest"]:
        return f"{usual}; in training to one of {', '.join(map(str, augment['shortest']))}"
    return usual


def _detector_loss(config: Config) -> str:
    changed = [f"{_plain(weight)} × {_plain(name)}" for name, weight in config["loss_weights"].items() if weight != 1]
    return "sum of the detector's losses" + (f", {', '.join(changed)}" if changed else "")


def _detector_network(config: Config) -> str:
    model = config["model"]
    options = _plain(model["options"])
    start = f", started from {model['weights']}" if model.get("weights") else ""
    return f"{model['name']}{f' ({options})' if options else ''}{start}"


def _optimizer(config: Config) -> str:
    entry = config["optimizer"]
    kind = "AdamW" if entry["name"] == "adamw" else f"SGD, momentum {_plain(entry['momentum'])}"
    parts = [
        kind,
        f"learning rate {_plain(entry['lr'])}",
        f"{entry['schedule']} schedule",
        f"weight decay {_plain(entry['weight_decay'])}",
    ]
    parts += [f"warm-up of {entry['warmup_steps']} steps"] if entry["warmup_steps"] else []
    parts += [f"gradients clipped at {_plain(entry['clip_norm'])}"] if entry["clip_norm"] else []
    parts += [f"averaged weights (EMA {entry['ema']})"] if entry["ema"] else []
    return ", ".join(parts)


def _schedule(config: Config) -> str:
    steps = f" of {config['steps_per_epoch']} steps" if config["steps_per_epoch"] else ""
    summed = config["optimizer"]["accumulate"]
    processes = config["devices"] * config["nodes"]
    batch = f"batches of {config['batch']}"
    batch += f" in each of {processes} processes" if processes > 1 else ""
    batch += f", {summed} summed before a step" if summed > 1 else ""
    patience = f", ends after {config['patience']} epochs without improvement" if config["patience"] else ""
    return f"{config['epochs']} epochs{steps}, {batch}{patience}"


def _arithmetic(config: Config) -> str:
    compiled = ", compiled" if config["compile"] else ""
    return f"{config['precision']} on {config['device']}{compiled}"


def _chance(config: Config) -> str:
    return f"seed {config['seed']}" + (", bit-identical repeats" if config["deterministic"] else "")


_ROWS: Rows = {
    "Data": (("data",), _data),
    "Input": (("input",), _input),
    "Network": (("model",), _network),
    "Patch": (("augment.patch", "augment.foreground"), _patch),
    "Augmentation": (("augment",), _augmentation),
    "Loss": (("loss",), _loss),
    "Optimiser": (("optimizer",), _optimizer),
    "Schedule": (("epochs", "steps_per_epoch", "batch", "optimizer.accumulate", "patience", "devices"), _schedule),
    "Arithmetic": (("precision", "device", "compile"), _arithmetic),
    "Chance": (("seed", "deterministic"), _chance),
}

_DETECTOR_ROWS: Rows = {
    "Data": _ROWS["Data"],
    "Input": _ROWS["Input"],
    "Network": (("model",), _detector_network),
    "Resizing": (("input.resize", "augment.shortest", "augment.jitter", "augment.patch"), _resizing),
    "Augmentation": _ROWS["Augmentation"],
    "Loss": (("loss_weights",), _detector_loss),
    **{name: _ROWS[name] for name in ("Optimiser", "Schedule", "Arithmetic", "Chance")},
}
