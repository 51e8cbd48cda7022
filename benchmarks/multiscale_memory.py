"""Attention over scales on a picture of Cityscapes' size: memory above the network, and labels, of three ways.

    python benchmarks/multiscale_memory.py --height 1024 --width 2048 --scales 0.5 1 2

`ours`: each scale in windows, fused strip by strip (`predict_scales`). `maps`: the same windows, but each scale into a map of
its whole size, and whole maps fused; its labels must be equal. `whole`: the whole picture at each scale through the network,
logits of all scales kept, as the original code does. Each way runs in a process of its own. The network is a narrow
HRNet-small with object context for 19 classes, weights random, biases such that all classes occur; the picture is
scikit-image's retina, mirrored. Numbers go to benchmarks/results/multiscale_memory.json.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.data import retina
from torch import Tensor

import delineate as dl
from _environment import environment
from _memory import MEGABYTE, PeakMemory
from delineate.data.windows import ArrayReader, mirrored_indices
from delineate.files import write_json
from delineate.models.multiscale_attention import View, fuse_hierarchically, scaled_size
from delineate.predict.resampling import ScaledReader
from delineate.predict.scales import predict_scales
from delineate.predict.tiling import predict_windows

RESULTS = Path(__file__).parent / "results"
CLASSES = 19


def make_picture(height: int, width: int) -> Tensor:
    texture = retina().transpose(2, 0, 1)
    rows, columns = mirrored_indices(0, height, texture.shape[1]), mirrored_indices(0, width, texture.shape[2])
    pixels = torch.from_numpy(np.ascontiguousarray(texture[:, rows][:, :, columns])).float()
    return (pixels - pixels.mean((1, 2), keepdim=True)) / pixels.std()


def build(picture: Tensor, scales: list[float], width: int) -> Any:
    """The network, its classes balanced on a part of the picture."""
    torch.manual_seed(0)
    inner = {"width": width, "small": True, "channels": 32, "keys": 16}
    model: Any = dl.create_model("hmsa_hrnet_w48_ocr", CLASSES, options=inner, scales=scales).eval()
    with torch.inference_mode():
        logits = model.model.maps(picture[None, :, :256, :256]).logits
    model.model.classifier.bias.data -= logits.mean((0, 2, 3))
    model.model.classifier.weight.data /= logits.std((0, 2, 3))[:, None, None, None]
    model.model.classifier.bias.data /= logits.std((0, 2, 3))
    return model


def ours(model: Any, picture: Tensor, window: tuple[int, int]) -> Tensor:
    strips = predict_scales(model, picture, window=window, batch=1, decode=lambda logits: logits.argmax(0).byte())
    return torch.cat([strip.content for strip in strips])


def maps(model: Any, picture: Tensor, window: tuple[int, int]) -> Tensor:
    views = []
    for scale in model.scales[::-1]:
        attend = scale < max(model.scales)
        reader = ScaledReader(ArrayReader(picture), scaled_size(picture.shape[1:], scale))

        def predict(x: Tensor, attend: bool = attend) -> Tensor:
            view = model.view(x, 1.0, attend=attend)
            return view.logits if view.attention is None else torch.cat([view.logits, view.attention], 1)

        whole = torch.cat([strip.content for strip in predict_windows(predict, reader, window=window, batch=1)], 1)[None]
        views.append(View(scale, whole[:, :CLASSES], whole[:, CLASSES:] if attend else None))
    return fuse_hierarchically(views)[0].argmax(0).byte()


def whole(model: Any, picture: Tensor, window: tuple[int, int]) -> Tensor:
    views = list(model.views(picture[None], model.scales[::-1]))
    return fuse_hierarchically(views)[0].argmax(0).byte()


WAYS = {"ours": ours, "maps": maps, "whole": whole}


def measure(
    way: str, size: tuple[int, int], scales: list[float], window: tuple[int, int], channels: int, threads: int
) -> tuple[Any, NDArray[Any]]:
    """Run one way; returns its numbers and labels."""
    torch.set_num_threads(threads)
    picture = make_picture(*size)
    model = build(picture, scales, channels)
    start = time.perf_counter()
    with torch.inference_mode(), PeakMemory() as memory:
        labels = WAYS[way](model, picture, window)
    seconds = time.perf_counter() - start
    return {"memory_above_network_mb": round(memory.above / MEGABYTE, 1), "seconds": round(seconds, 1)}, labels.numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--height", type=int, default=1024)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--scales", type=float, nargs="+", default=[0.5, 1.0, 2.0])
    parser.add_argument("--window", type=int, nargs=2, default=[256, 512], help="height and width")
    parser.add_argument("--channels", type=int, default=8, help="of the finest branch of HRNet")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    arguments = parser.parse_args()

    report: dict[str, Any] = {
        "environment": environment(),
        "network": f"hmsa_hrnet_w48_ocr with width {arguments.channels}, small, 32 channels, 16 keys",
        "size": [arguments.height, arguments.width, CLASSES],
        "scales": arguments.scales,
        "window": arguments.window,
    }
    labels = {}
    for way in arguments.ways:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            threads = torch.get_num_threads()
            size = (arguments.height, arguments.width)
            job = (way, size, arguments.scales, tuple(arguments.window), arguments.channels, threads)
            report[way], labels[way] = pool.apply(measure, job)
        print(way, report[way], flush=True)
    counts = np.bincount(labels["ours"].ravel(), minlength=CLASSES)
    report["share_of_each_class"] = (counts / counts.sum()).round(4).tolist()
    for way in set(labels) - {"ours"}:
        report[way]["labels_differ_from_ours"] = int((labels[way] != labels["ours"]).sum())
        report[way]["memory_ratio"] = round(
            report[way]["memory_above_network_mb"] / report["ours"]["memory_above_network_mb"], 2
        )
    print(report)
    write_json(RESULTS / "multiscale_memory.json", report)


if __name__ == "__main__":
    main()
