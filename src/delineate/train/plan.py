"""`Plan`: a training configuration in which every choice carries its reason; a table to read, a YAML file to train with."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from delineate.config import TrainConfig

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, slots=True)
class Plan:
    """What to train and why."""

    config: TrainConfig
    reasons: dict[str, str]  # dotted key of the config, such as "augment.patch", or a group, "augment" -> one line
    notes: tuple[str, ...] = field(default=())  # what the user should know beyond single settings, such as the training time

    def rows(self) -> list[tuple[str, str, str]]:
        """The reasoned settings in the order of the reasons, as (setting, value, because)."""
        content = self.config.model_dump(mode="json")
        return [(key, show(_lookup(content, key)), reason) for key, reason in self.reasons.items()]

    def table(self) -> Table:
        """Return the plan as a table of three columns for a terminal."""
        from rich.table import Table

        table = Table(title=f"Plan for {self.config.data.path}", title_justify="left", caption="\n".join(self.notes) or None)
        table.caption_justify = "left"
        table.add_column("setting", style="bold", no_wrap=True)
        table.add_column("value", overflow="fold", max_width=40)
        table.add_column("because", ratio=1)
        for row in self.rows():
            table.add_row(*row)
        return table

    def print(self) -> None:
        """Print the table to the terminal."""
        from rich.console import Console

        Console().print(self.table())

    def to_yaml(self) -> str:
        """Return the configuration as YAML that `load_config` reads, each reason a comment above its key."""
        header = [f"# {note}" for note in self.notes]
        return "\n".join([*header, *self._lines(self.config.model_dump(mode="json"), "")]) + "\n"

    def to_json(self) -> dict[str, Any]:
        """Return config, reasons, table rows and notes as what JSON can hold."""
        rows = [dict(zip(("setting", "value", "because"), row, strict=True)) for row in self.rows()]
        return {
            "config": self.config.model_dump(mode="json"),
            "reasons": dict(self.reasons),
            "rows": rows,
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Plan:
        """Rebuild from `to_json`'s value."""
        return cls(TrainConfig.model_validate(content["config"]), dict(content["reasons"]), tuple(content["notes"]))

    def _lines(self, content: dict[str, Any], prefix: str) -> list[str]:
        """The lines of a group of settings, indented by the depth of `prefix`."""
        indent = "  " * prefix.count(".")
        lines: list[str] = []
        for key, value in content.items():
            if reason := self.reasons.get(prefix + key):
                lines.append(f"{indent}# {reason}")
            if isinstance(value, dict) and value:
                lines += [f"{indent}{key}:", *self._lines(value, f"{prefix}{key}.")]
            else:
                flow = yaml.safe_dump([value], default_flow_style=True, sort_keys=False, width=1 << 20).strip()[1:-1]
                lines.append(f"{indent}{key}: {flow}")
        return lines


def show(value: Any) -> str:
    """Write a setting as one readable piece of text.

    >>> show([256, 256]), show({"width": 24, "levels": 5}), show([{"name": "dice", "weight": 1.0, "options": {}}]), show(None)
    ('256 x 256', 'width 24, levels 5', 'dice', 'none')
    """
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {show(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return _show_list(list(value))
    return str(value)


def _show_list(items: list[Any]) -> str:
    if items and all(isinstance(item, dict) and "name" in item for item in items):  # the terms of a loss
        factors = ["" if item["weight"] == 1 else f"{show(item['weight'])} * " for item in items]
        options = [f" ({show(item['options'])})" if item["options"] else "" for item in items]
        return " + ".join(f + item["name"] + o for f, item, o in zip(factors, items, options, strict=True))
    if len(items) == 2 and all(isinstance(item, int) for item in items):  # height and width
        return f"{items[0]} x {items[1]}"
    return ", ".join(show(item) for item in items)


def _lookup(content: dict[str, Any], key: str) -> Any:
    """The value at a dotted key; a group of augmentations without those that are off."""
    value: Any = content
    for part in key.split("."):
        value = value[part]
    if isinstance(value, dict):
        value = {k: v for k, v in value.items() if json.dumps(v) not in ("0", "0.0", "false", "null", "[1.0, 1.0]", "{}")}
    return value
