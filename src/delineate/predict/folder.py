"""Predicting files, folders and globs into a folder of results."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from delineate.data.decode import image_size, list_images, page_count
from delineate.data.formats.classes import write_class_file
from delineate.data.formats.names import flat_names, shortest_names
from delineate.errors import DataError
from delineate.predict.export_formats import ResultsWriter
from delineate.predict.predictor import Predictor

HUGE = 1 << 26
"""Pictures of more pixels are predicted strip by strip into a TIFF of class ids, unless the network finds objects."""


class Page(NamedTuple):
    """One picture to predict: a file, or a page of a multi-page TIFF."""

    path: Path
    frame: int
    name: str  # that outputs are called by


def predict_folder(
    predictor: Predictor,
    source: str | Path,
    out: str | Path,
    *,
    formats: Sequence[str] = ("png", "overlay"),
    quiet: bool = False,
    huge: int = HUGE,
) -> list[str]:
    """Predict a picture, a folder or a glob into the folder `out`, and return one line for each picture that failed.

    Outputs are those of `Results.save`; pictures of more than `huge` pixels become masks/NAME.tif, however large they are. A
    picture that cannot be read is named on stderr, and the others go on. Raises `DataError` where `source` names no picture,
    and `DelineateError` where `out` cannot be written.
    """
    failures: list[str] = []
    start, pixels, done = time.perf_counter(), 0, 0
    with ResultsWriter(out, formats) as writer:
        for page in list_pages(list_images(source), failures):
            try:
                height, width = _predict_page(predictor, page, writer, huge, quiet)
            except DataError as error:
                failures.append(str(error))
                print(f"delineate: {error}", file=sys.stderr)
                continue
            pixels, done = pixels + height * width, done + 1
    if not quiet:
        seconds = time.perf_counter() - start
        print(
            f"{done} pictures in {seconds:.1f} s: {done / seconds:.2f} pictures/s, {pixels / seconds / 1e6:.2f} megapixels/s, "
            f"{predictor.precision} on {predictor.device}; results in {writer.out}"
        )
        for loss in writer.losses:
            print(f"lost: {loss}")
    return failures


def list_pages(paths: Sequence[Path], failures: list[str]) -> Iterator[Page]:
    """Yield the pages of pictures with unique names; a file that cannot be opened goes to `failures`."""
    stems = [(*path.parts[:-1], path.stem) for path in paths]
    if len(set(stems)) < len(stems):  # x.png and x.tif in one folder
        stems = [path.parts for path in paths]
    for path, name in zip(paths, flat_names(shortest_names(stems)), strict=True):
        try:
            pages = page_count(path)
        except DataError as error:
            failures.append(str(error))
            print(f"delineate: {error}", file=sys.stderr)
            continue
        digits = len(str(pages - 1))
        for frame in range(pages):
            yield Page(path, frame, name if pages == 1 else f"{name}_{frame:0{digits}d}")


def _predict_page(predictor: Predictor, page: Page, writer: ResultsWriter, huge: int, quiet: bool) -> tuple[int, int]:
    """Predict one page, write its results and say so; returns its height and width."""
    height, width = image_size(page.path, page.frame)
    notes: list[str]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        start = time.perf_counter()
        if height * width > huge and predictor.conventions.outputs != "instances":  # detectors see it resized anyway
            target = writer.out / "masks" / f"{page.name}.tif"
            predictor.predict_to_tiff(page.path, target, frame=page.frame)
            write_class_file(writer.out / "classes.txt", predictor.classes)
            notes, found = ["class ids only, because it is huge"], "by strips"
        else:
            results = predictor.predict(page.path, frame=page.frame, name=page.name)
            writer.add(results)
            notes, found = [], f"{len(results)} objects" if results.has_objects else ""
        seconds = time.perf_counter() - start
    notes += [str(warning.message).removeprefix(f"{page.path}: ") for warning in caught]
    if not quiet:
        print("  ".join(filter(None, (str(page.path), f"{height} x {width}", found, f"{seconds:.2f} s", *notes))))
    return height, width
