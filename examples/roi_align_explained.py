"""RoI Pooling, RoI Warp and RoI Align, drawn: what each reads of a feature map, and what rounding costs a mask.

    python examples/roi_align_explained.py [--out docs/figures] [--steps 100]

The photograph of coins that scikit-image carries, enlarged twice, goes through U-Net's contracting path, whose last map has a
stride of 16 pixels. It is trained here, on the upper half of the photograph; the coins that are drawn and measured lie in the
lower half. docs/roi_align.md explains the figures.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from torch import Tensor

from _regions import (
    OPERATIONS,
    STRIDE,
    Axis,
    Moved,
    Scene,
    axes_of,
    decode,
    interpolate,
    load_scene,
    mask_iou,
    move,
    train_network,
)
from delineate.report.palette import palette
from delineate.report.plots import save_png

ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PURPLE = (f"#{r:02x}{g:02x}{b:02x}" for r, g, b in palette(8)[1:])
COLORS = {"RoIPool": RED, "RoIWarp": ORANGE, "RoIAlign": BLUE}
BIN_COLORS = (GREEN, PURPLE, ORANGE, SKY)
Bounds = tuple[float, float, float, float]
NAMES = ("x0", "y0", "x1", "y1")
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
}


# ---- Drawing: everything in cells of the map, cell i from i to i + 1 ----


def draw_pooling(scene: Scene, features: Tensor, box: Tensor) -> Figure:
    """RoIPool in four steps, with 2 x 2 bins; `features` (H, W)."""
    figure, (first, second, third, fourth) = new_figure(8.2, 9.2, 2, 2)
    exact, x, y = cells_of(box), *axes_of("RoIPool", box, 2, features.shape)
    rounded = span(x, y)
    view = around(exact, rounded)

    show_photograph(first, "1  A region with whole pixel bounds", scene, view)
    note(
        first,
        "   ".join(f"{n} {c:.0f}" for n, c in zip(NAMES, box.tolist(), strict=True)),
        "squares: 16 × 16 pixels, a cell of the map",
    )
    rectangle(first, exact, BLUE)

    show(second, "2  Its bounds are rounded to cells", features, view)
    ends = [(axis, exact[i], exact[i + 2], rounded[i], rounded[i + 2] - 1) for i, axis in enumerate("xy")]
    note(second, *(f"{axis}: {a:.2f} to {b:.2f}  →  cells {c:.0f} to {d:.0f}" for axis, a, b, c, d in ends))
    rectangle(second, exact, BLUE, linestyle="--")
    rectangle(second, rounded, RED)

    show(third, "3  Its bins are rounded too, outwards", features, view)
    sizes = [f"{axis}: {e[-1] - e[0]:.0f} cells / 2 = {e[1] - e[0]:g}" for axis, e in (("x", x.edges), ("y", y.edges))]
    note(third, "     ".join(sizes), "star: the largest cell of a bin is its result")
    cross(third, x, y, RED, ":")
    for (row, column), color in zip(np.ndindex(2, 2), BIN_COLORS, strict=True):
        cells = int(x.first[column]), int(y.first[row]), int(x.last[column]) + 1, int(y.last[row]) + 1
        rectangle(third, cells, color, inset=(0.08, 0.2)[(row + column) % 2], gid="bin")
        part = features[cells[1] : cells[3], cells[0] : cells[2]]
        top, left = divmod(int(part.argmax()), part.shape[1])
        star = cells[0] + left + (0.3, 0.7)[column], cells[1] + top + (0.3, 0.7)[row]  # beside that of another bin
        third.plot(*star, "*", color=color, markersize=15, markeredgecolor="black")

    show_photograph(fourth, "4  What was read is not what was asked", scene, view)
    note(fourth, "displacement of the bounds, in pixels", "")
    rectangle(fourth, exact, BLUE, linestyle="--")
    rectangle(fourth, rounded, RED)
    centre = (exact[0] + exact[2]) / 2, (exact[1] + exact[3]) / 2
    for side, (before, after) in enumerate(zip(exact, rounded, strict=True)):
        between = (before + after) / 2
        place = (centre[0], between) if side % 2 else (between, centre[1])
        write(fourth, *place, f"{STRIDE * (after - before):+.0f}".replace("-", "−"), weight="bold")
    key(figure, {"the region": (BLUE, "-"), "rounded to cells": (RED, "-"), "its bins, before their rounding": (RED, ":")})
    return figure


def draw_alignment(scene: Scene, features: Tensor, box: Tensor) -> Figure:
    """RoIAlign in four steps, with 2 x 2 bins of four points; `features` (H, W)."""
    figure, (first, second, third, fourth) = new_figure(8.2, 9.2, 2, 2)
    exact, x, y = cells_of(box), *axes_of("RoIAlign", box, 2, features.shape)
    view = around(exact, exact)
    values = interpolate(features, x, y)  # (2, 2, 2, 2)
    chosen = most_varied(features, x, y)

    show_photograph(first, "1  The region and its bins stay exact", scene, view)
    ends = [f"{n}: {p:.0f} / 16 = {e:.2f}" for n, p, e in zip(NAMES, box.tolist(), exact, strict=True)]
    note(first, "   ".join(ends[0::2]), "   ".join(ends[1::2]))
    show(second, "2  Each bin has four points", features, view)
    note(second, "in the middles of its quarters,", "between the centres of cells (small dots)")
    for axes in (first, second):
        rectangle(axes, exact, BLUE)
        cross(axes, x, y, BLUE)
    second.plot(*(np.argwhere(np.ones(features.shape))[:, ::-1] + 0.5).T, ".", color="black", markersize=2.5)
    for (row, column), color in zip(np.ndindex(2, 2), BIN_COLORS, strict=True):
        places = np.meshgrid(x.points[column], y.points[row])
        second.plot(*(p.ravel() for p in places), "o", color=color, markersize=9, markeredgecolor="black", gid="points")
    point = x.points.ravel()[chosen[1]], y.points.ravel()[chosen[0]]
    second.plot(*point, "o", color="none", markersize=18, markeredgecolor="black", markeredgewidth=2)

    color = BIN_COLORS[2 * (chosen[0] // 2) + chosen[1] // 2]
    draw_neighbours(third, features, x, y, chosen, color)
    draw_result(fourth, values)
    key(figure, {"the region and its bins": (BLUE, "-")})
    return figure


def most_varied(features: Tensor, x: Axis, y: Axis) -> tuple[int, int]:
    """Row and column of the point whose four neighbours differ most."""
    best = (-1.0, 0, 0)
    for (row, low), (column, left) in product(enumerate(y.low.ravel()), enumerate(x.low.ravel())):
        best = max(best, (float(features[low : low + 2, left : left + 2].std()), row, column))
    return best[1:]


def draw_neighbours(axes: Axes, features: Tensor, x: Axis, y: Axis, chosen: tuple[int, int], color: str) -> None:
    """The four cells around a point, with their weights."""
    columns, rows = ((axis.low.ravel()[i], axis.high.ravel()[i]) for axis, i in ((x, chosen[1]), (y, chosen[0])))
    across, down = (axis.fraction.ravel()[i] for axis, i in ((x, chosen[1]), (y, chosen[0])))
    show(axes, "3  A point mixes its four neighbours", features, (columns[0], rows[0], columns[1] + 1, rows[1] + 1))
    point = columns[0] + across + 0.5, rows[0] + down + 0.5
    total = 0.0
    for row, v in zip(rows, (1 - down, down), strict=True):
        for column, w in zip(columns, (1 - across, across), strict=True):
            value = float(features[row, column])
            total += value * float(v * w)
            axes.plot((point[0], column + 0.5), (point[1], row + 0.5), color="black", linewidth=1)
            axes.plot(column + 0.5, row + 0.5, ".", color="black", markersize=7)
            text = f"{value:.2f} × {v * w:.2f}"
            write(axes, column + 0.5, row + (0.28 if row == rows[0] else 0.72), text, fontsize=12)
    axes.plot(*point, "o", color=color, markersize=14, markeredgecolor="black")
    note(axes, "value × weight, added up:", f"the point is {total:.2f}")


def draw_result(axes: Axes, values: np.ndarray) -> None:
    """Each bin's four points, and what becomes of them."""
    bins = values.reshape(2, 2, 4)
    show(axes, "4  A bin is their mean, or their maximum", torch.from_numpy(bins.mean(-1)), (0, 0, 2, 2))
    note(axes, "dots: values of the points", "")
    for (row, column), color in zip(np.ndindex(2, 2), BIN_COLORS, strict=True):
        for (down, across), value in zip(np.ndindex(2, 2), bins[row, column], strict=True):
            place = column + 0.25 + 0.5 * across, row + 0.2 + 0.6 * down
            write(axes, *place, f"{value:.2f}")
            axes.plot(place[0] - 0.17, place[1], "o", color=color, markersize=9, markeredgecolor="black")
        mean, largest = bins[row, column].mean(), bins[row, column].max()
        write(axes, column + 0.5, row + 0.5, f"mean {mean:.2f}\nmax {largest:.2f}", fontsize=13, weight="bold")


def draw_comparison(scene: Scene, features: Tensor, index: int) -> Figure:
    """The same coin by the three operations: what they read, the 7 x 7 patch, and the mask that a 14 x 14 patch becomes."""
    figure, panels = new_figure(8.2, 8.8, 3, 3)
    box, truth = scene.boxes[index], scene.coins[index]
    exact = cells_of(box)
    view = around(exact, span(*axes_of("RoIPool", box, 7, features.shape)))
    for column, (name, operation) in enumerate(OPERATIONS.items()):
        read, patch, mask = panels[column::3]
        x, y = axes_of(name, box, 7, features.shape)
        show(read, name, features, view)
        rectangle(read, exact, BLUE, linestyle="-" if name == "RoIAlign" else "--")
        if name != "RoIAlign":
            rectangle(read, span(x, y), COLORS[name])
        read.plot(*(p.ravel() for p in np.meshgrid(x.points, y.points)), "o", color=COLORS[name], markersize=3, gid=name)
        note(
            read,
            {"RoIPool": "cells, rounded", "RoIWarp": "points, region rounded", "RoIAlign": "points, nothing rounded"}[name],
        )

        small = operation(features[None, None], [box[None]], 7)[0, 0]
        show(patch, "", small, (0, 0, 7, 7))
        note(patch, "maximum of a bin" if name == "RoIPool" else "mean of a bin")

        found = decode(name, features[None, None], box[None], box[None], scene.photograph.shape)
        show_photograph(mask, "", scene, view)
        outline(mask, truth, GREEN, 1.5)
        outline(mask, found[0], COLORS[name], 2.5)
        note(mask, f"IoU {mask_iou(found, truth[None]).item():.2f}")
    for axes, label in zip(panels[::3], ("read by 7 × 7 bins", "7 × 7 patch", "mask of a 14 × 14 patch"), strict=True):
        axes.set_ylabel(label, fontweight="bold")
    key(figure, {"the region": (BLUE, "--"), "true outline": (GREEN, "-")} | {n: (c, "-") for n, c in COLORS.items()})
    return figure


def draw_shift(results: dict[str, dict[str, Moved]], shifts: Sequence[int]) -> Figure:
    """IoU and displacement of masks against the shift, means over the coins, for each kind of features."""
    figure, panels = new_figure(8.2, 6.2, 2, len(results))
    cells = [shift / STRIDE for shift in shifts]
    for column, (features, curves) in enumerate(results.items()):
        upper, lower = panels[column :: len(results)]
        for name, moved in curves.items():
            color = COLORS[name.split(",")[0]]
            style = {"color": color, "linewidth": 2, "linestyle": "--" if "," in name else "-"}
            upper.plot(cells, moved.iou.mean(1), **style)
            lower.plot(cells, moved.offset.mean(1), **style)
        upper.set(title=features, ylim=(0.55, 1), ylabel="IoU with the true mask")
        lower.set(xlabel="shift of the coin, in cells", ylabel="mask off by, pixels", ylim=(0, 15))
        lower.axvline(0.5, color="gray", linewidth=1)
        lower.text(0.52, 14, "x0 and y0 round up", color="gray", va="center")
        for axes in (upper, lower):
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
    styles = {name: (COLORS[name.split(",")[0]], "--" if "," in name else "-") for name in next(iter(results.values()))}
    key(figure, styles)
    return figure


def new_figure(width: float, height: float, rows: int, columns: int) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.1))
    return figure, figure.subplots(rows, columns).ravel()


def cells_of(box: Tensor) -> Bounds:
    x0, y0, x1, y1 = (box / STRIDE).tolist()
    return x0, y0, x1, y1


def span(x: Axis, y: Axis) -> Bounds:
    """The region of both axes."""
    return float(x.edges[0]), float(y.edges[0]), float(x.edges[-1]), float(y.edges[-1])


def around(*regions: Bounds) -> Bounds:
    """What a panel shows: a cell more than all regions."""
    low, high = np.floor(np.min(regions, 0)) - 1, np.ceil(np.max(regions, 0)) + 1
    return float(low[0]), float(low[1]), float(high[2]), float(high[3])


def show(axes: Axes, title: str, picture: Tensor, view: Bounds, pixels: int = 1, darkest: float = -0.6) -> None:
    """A part of a map, in greys that leave room for colours, under the grid of cells, each `pixels` large."""
    height, width = (length / pixels for length in picture.shape)
    axes.imshow(picture, cmap="gray", vmin=darkest, vmax=1, extent=(0, width, height, 0), interpolation="nearest")
    lines = {"color": "white" if pixels > 1 else "#4d4d4d", "linewidth": 0.5, "alpha": 0.6}
    axes.vlines(np.arange(view[0], view[2] + 1), view[1], view[3], **lines)
    axes.hlines(np.arange(view[1], view[3] + 1), view[0], view[2], **lines)
    axes.set(title=title, xlim=(view[0], view[2]), ylim=(view[3], view[1]), xticks=[], yticks=[])


def show_photograph(axes: Axes, title: str, scene: Scene, view: Bounds) -> None:
    show(axes, title, scene.photograph, view, pixels=STRIDE, darkest=-0.3)


def note(axes: Axes, *lines: str) -> None:
    axes.set_xlabel("\n".join(lines), linespacing=1.4)


def write(axes: Axes, x: float, y: float, text: str, **style: Any) -> None:
    around_text = [withStroke(linewidth=3, foreground="white")]
    axes.text(x, y, text, ha="center", va="center", path_effects=around_text, **style)


def rectangle(axes: Axes, region: Bounds, color: str, inset: float = 0.0, **style: Any) -> None:
    x0, y0, x1, y1 = region
    size = x1 - x0 - 2 * inset, y1 - y0 - 2 * inset
    axes.add_patch(Rectangle((x0 + inset, y0 + inset), *size, fill=False, edgecolor=color, linewidth=2.5, **style))


def cross(axes: Axes, x: Axis, y: Axis, color: str, linestyle: Any = "-") -> None:
    """The lines between 2 x 2 bins."""
    axes.vlines(x.edges[1], y.edges[0], y.edges[-1], color=color, linestyle=linestyle, linewidth=2)
    axes.hlines(y.edges[1], x.edges[0], x.edges[-1], color=color, linestyle=linestyle, linewidth=2)


def outline(axes: Axes, mask: Tensor, color: str, width: float) -> None:
    """The outline of a mask of the photograph."""
    y, x = ((np.arange(length) + 0.5) / STRIDE for length in mask.shape)
    axes.contour(x, y, mask.float(), levels=[0.5], colors=[color], linewidths=width)


def key(figure: Figure, lines: dict[str, tuple[str, Any]]) -> None:
    """One legend above all panels."""
    handles = [Line2D([], [], color=color, linestyle=style, linewidth=2.5) for color, style in lines.values()]
    figure.legend(handles, lines, loc="outside upper center", ncols=len(lines))


# ---- All of it ----


def main(out: Path, steps: int = 100, coin: int = 15, shifts: Sequence[int] = range(STRIDE + 1)) -> dict[str, dict[str, Moved]]:
    """Train, draw all figures of the coin into `out`, and return what was measured of each kind of features."""
    scene = load_scene()
    network = train_network(scene, steps)
    rows, columns = (length // STRIDE * STRIDE for length in scene.photograph.shape)
    features = network(scene.photograph[None, None, :rows, :columns])[0, 0]
    results = {
        "True coverage of the cells": move(scene, None, shifts),
        "Coverage, by the network": move(scene, network, shifts),
    }
    with rc_context(STYLE):
        save_png(draw_pooling(scene, features, scene.boxes[coin]), out / "roi_pool.png")
        save_png(draw_alignment(scene, features, scene.boxes[coin]), out / "roi_align.png")
        save_png(draw_comparison(scene, features, coin), out / "roi_operations.png")
        save_png(draw_shift(results, shifts), out / "roi_shift.png")
    for kind, curves in results.items():
        print(f"{kind}: mask IoU, mean (lowest to highest of all shifts), and how far its centre is off")
        for name, moved in curves.items():
            iou, offset = moved.iou.mean(1), moved.offset.mean()
            print(f"  {name:30} {iou.mean():.3f} ({iou.min():.3f} to {iou.max():.3f})  {offset:4.1f} pixels")
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parents[1] / "docs" / "figures", help="folder of the figures"
    )
    parser.add_argument("--steps", type=int, default=100, help="of the training")
    given = parser.parse_args()
    main(given.out, given.steps)
