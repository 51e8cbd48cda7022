"""Predict a picture of 20,000 x 20,000 pixels from a tiled TIFF into a tiled TIFF: time, and memory above the network.

    python benchmarks/huge_image.py --side 20000 --width 32

The picture is scikit-image's coins, mirrored to fill it, under slowly changing light and noise. A smaller picture
(--naive-side) is predicted the naive way too, every window into one (K, H, W) array, to show that the labels are equal. The
network's weights are random unless --weights names some. Numbers go to benchmarks/results/huge_image.json.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import tifffile
import torch
from numpy.typing import NDArray
from skimage.data import coins

import delineate as dl
from _environment import environment
from _memory import MEGABYTE, PeakMemory
from delineate.data.decode import decode_labels
from delineate.data.windows import mirrored_indices, open_image
from delineate.files import write_json
from delineate.predict.tiling import plan_axis
from delineate.weights import Conventions

RESULTS = Path(__file__).parent / "results"
TILE = 512


def make_picture(path: Path, side: int) -> None:
    """Write the picture tile by tile; no more than a row of tiles is in memory."""
    texture = coins().astype(np.float32)
    columns = mirrored_indices(0, side, texture.shape[1])
    rng = np.random.default_rng(0)

    def tiles() -> Iterator[NDArray[np.uint8]]:
        for top in range(0, side, TILE):
            count = min(TILE, side - top)
            rows = texture[mirrored_indices(top, count, texture.shape[0])][:, columns]
            light = 1 + 0.2 * np.sin(np.arange(top, top + count)[:, None] / 977 + np.arange(side)[None] / 1409)
            noise = rng.integers(-4, 5, rows.shape, dtype=np.int8)
            strip = np.clip(rows * light + noise, 0, 255).astype(np.uint8)
            strip = np.pad(strip, ((0, TILE - count), (0, -side % TILE)))
            yield from (np.ascontiguousarray(strip[:, left : left + TILE]) for left in range(0, side, TILE))

    with tifffile.TiffWriter(path, bigtiff=side**2 > 1 << 31) as writer:
        writer.write(
            tiles(),
            shape=(side, side),
            dtype=np.uint8,
            tile=(TILE, TILE),
            compression="zlib",
            photometric="minisblack",
            maxworkers=1,
        )


def build(width: int, weights: Path | None) -> torch.nn.Module:
    """Return the network of `weights`, or a U-Net with random ones, balanced so that both classes are frequent."""
    if weights is not None:
        return dl.load_model(weights)
    torch.manual_seed(0)
    model: Any = dl.create_model("unet", num_classes=2, in_channels=1, width=width)
    model.classes = ("background", "coin")
    model.conventions = Conventions(color="gray", mean=(0.38,), std=(0.21,))
    model.eval()
    pixels = (torch.from_numpy(coins()[:256, :256]).float()[None, None] / 255 - 0.38) / 0.21
    with torch.inference_mode():
        logits = model(pixels)[0]
        model.head.bias[1] -= (logits[1] - logits[0]).median()
    return model


def naive_labels(predictor: dl.Predictor, path: Path, window: int) -> NDArray[np.uint8]:
    """Every window into one (K, H, W) accumulator of the whole picture, weights divided out at the end, then the arg-max."""
    network = predictor.semantic.network
    image = open_image(path, whole_bytes=1 << 40)  # decoded whole
    _, height, width = image.shape
    rows, columns = (plan_axis(side, window, predictor.semantic.overlap, "constant", network) for side in (height, width))
    axes = [torch.exp(-0.5 * ((torch.arange(n) - (n - 1) / 2) / (n / 8)) ** 2) for n in (rows.output, columns.output)]
    weight = torch.outer(*axes)
    scores, total = torch.zeros(len(predictor.classes), height, width), torch.zeros(height, width)
    with torch.inference_mode():
        for top in rows.starts:
            for left in columns.starts:
                pixels = image.read(top, left, rows.output, columns.output)
                output = network(network.prepare(torch.from_numpy(pixels.copy())[None]))[0].cpu()
                part = (slice(top, top + rows.output), slice(left, left + columns.output))
                scores[:, *part] += output * weight
                total[part] += weight
    return (scores / total).argmax(0).numpy().astype(np.uint8)


def megabytes_of(model: torch.nn.Module) -> float:
    return sum(p.numel() * p.element_size() for p in model.parameters()) / MEGABYTE


def measured(predictor: dl.Predictor, picture: Path, out: Path, baseline: int | None = None) -> dict[str, Any]:
    """Predict a picture into a TIFF; returns seconds, megapixels a second and megabytes above the network."""
    start = time.perf_counter()
    with PeakMemory(baseline) as memory:
        height, width = predictor.predict_to_tiff(picture, out)
    seconds = time.perf_counter() - start
    return {
        "height": height,
        "width": width,
        "seconds": round(seconds, 2),
        "megapixels_per_second": round(height * width / seconds / 1e6, 3),
        "memory_above_network_mb": round(memory.above / MEGABYTE, 1),
        "picture_mb": round(height * width / MEGABYTE, 1),
    }


def compared(predictor: dl.Predictor, folder: Path, side: int, window: int) -> dict[str, Any]:
    """Labels and memory of the engine and of the naive way on one picture."""
    picture = folder / "small.tif"
    make_picture(picture, side)
    result = measured(predictor, picture, folder / "small-labels.tif")
    with PeakMemory() as memory:
        expected = naive_labels(predictor, picture, window)
    found = decode_labels(folder / "small-labels.tif")
    counts = np.bincount(expected.ravel(), minlength=len(predictor.classes))
    return result | {
        "naive_memory_above_network_mb": round(memory.above / MEGABYTE, 1),
        "labels_differ": int((found != expected).sum()),
        "share_of_each_class": (counts / counts.sum()).round(4).tolist(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=20000)
    parser.add_argument("--naive-side", type=int, default=3000)
    parser.add_argument("--width", type=int, default=32, help="channels of the U-Net's first level")
    parser.add_argument("--weights", type=Path, default=None)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--batch", type=int, default=None)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--folder", type=Path, default=None, help="for the pictures; default: a temporary folder")
    arguments = parser.parse_args()

    model = build(arguments.width, arguments.weights)
    predictor = dl.Predictor(
        model, arguments.device, arguments.precision, window=arguments.window, batch=arguments.batch, objects="none"
    )
    baseline = psutil.Process().memory_info().rss  # with the network, before anything is predicted
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        make_picture(folder / "huge.tif", arguments.side)
        huge = measured(predictor, folder / "huge.tif", folder / "huge-labels.tif", baseline)
        print(huge)
        small = compared(predictor, folder, arguments.naive_side, arguments.window)
        print(small)
    report = {
        "environment": environment(),
        "network": {"name": "unet", "width": arguments.width, "weights": str(arguments.weights or "random")},
        "parameters_mb": round(
            sum(p.numel() * p.element_size() for p in predictor.semantic.network.model.parameters()) / MEGABYTE, 1
        ),
        "window": arguments.window,
        "overlap": predictor.semantic.overlap,
        "batch": predictor.semantic.batch,
        "precision": predictor.precision,
        "device": str(predictor.device),
        "huge": huge,
        "naive": small,
    }
    write_json(RESULTS / "huge_image.json", report)


if __name__ == "__main__":
    main()
