"""Drawings, plots and the report of a run; knows files, data and tensors, but no network."""

from delineate.report.overlay import (
    draw_errors,
    draw_instances,
    draw_semantic,
    draw_skeletons,
    palette,
    side_by_side,
    to_display,
)

__all__ = ["draw_errors", "draw_instances", "draw_semantic", "draw_skeletons", "palette", "side_by_side", "to_display"]
