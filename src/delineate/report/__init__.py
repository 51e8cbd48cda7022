"""Drawings, plots and the report of a run; knows files, data and tensors, but no network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from delineate.report.overlay import (
    draw_errors,
    draw_instances,
    draw_semantic,
    draw_skeletons,
    palette,
    side_by_side,
    to_display,
)

if TYPE_CHECKING:
    from delineate.report.html import write_report

__all__ = [
    "draw_errors",
    "draw_instances",
    "draw_semantic",
    "draw_skeletons",
    "palette",
    "side_by_side",
    "to_display",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name == "write_report":  # imported when used: matplotlib and Jinja take longer than a drawing
        from delineate.report.html import write_report

        return write_report
    raise AttributeError(f"module 'delineate.report' has no attribute '{name}'")
