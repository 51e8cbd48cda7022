"""Options of networks: looked up in tables and checked, so that a wrong one is told by its name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import nn

from delineate.errors import ConfigError, suggest

T = TypeVar("T")


def choose(table: Mapping[str, T], value: str, option: str) -> T:
    """Return `table[value]`, or raise a `ConfigError` that names `option` and the values it may take."""
    if value not in table:
        hint = suggest(str(value), list(table)) or f"; known are {', '.join(table)}"
        raise ConfigError(f"{option} '{value}' is unknown{hint}")
    return table[value]


def check_options(build: Callable[..., nn.Module], num_classes: Any, options: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for values of the wrong type or range, going by the annotations of `build`.

    A whole number may be 0 only where that is the default.
    """
    if not _is_count(num_classes):
        raise ConfigError(f"num_classes is {num_classes!r}, expected a whole number of at least 1")
    for option, value in options.items():
        parameter = inspect.signature(build).parameters[option]
        least = 0 if parameter.default == 0 else 1
        expected, fits = {
            "int": (f"a whole number of at least {least}", _is_count(value, least)),
            "float": ("a probability of at least 0 and below 1", isinstance(value, (int, float)) and 0 <= value < 1),
            "bool": ("true or false", isinstance(value, bool)),
            "str": ("a name", isinstance(value, str)),
            "Sequence[int] | None": (
                "a list of whole numbers",
                value is None or (isinstance(value, (list, tuple)) and all(map(_is_count, value))),
            ),
            "Sequence[int]": ("a list of whole numbers", isinstance(value, (list, tuple)) and all(map(_is_count, value))),
            "Sequence[float]": ("a list of numbers", isinstance(value, (list, tuple)) and all(map(_is_number, value))),
            "Mapping[str, Any] | None": ("a table of options", value is None or isinstance(value, dict)),
        }[parameter.annotation]
        if not fits:
            raise ConfigError(f"option '{option}' is {value!r}, expected {expected}")


def _is_count(value: Any, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
