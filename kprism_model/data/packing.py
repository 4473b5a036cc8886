# SPDX-License-Identifier: Apache-2.0
"""The command `pack`: MSD-style folders -> one file to train from (see `kprism_model.data.pack`)."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kprism_model.checkpoint import checkpoint_stem
from kprism_model.data.building import labelled_datasets
from kprism_model.data.datasets import SPLITS, Case, Dataset, load_case, slice_counts
from kprism_model.data.pack import PackedSet, PackedSlice, encode_image, encode_label, pack_bytes
from kprism_model.data.slices import to_canvas
from kprism_model.files import write_bytes
from kprism_model.named_values import named_values
from kprism_model.preprocess import Geometry, evenly_spaced
from kprism_model.progress import progress_bar

PACK_LIMIT = 28_000_000
"""Largest size of a pack in bytes."""
TREE_LIMIT = 60 * 2**20
"""Largest size in bytes of a repository's tracked files, a pack and the initial weights together."""

_EMPTY_SLICE_RATIO = 5  # if a data set is thinned, one of this many slices shows no structure
_SOURCE_SUFFIXES = (".jpg", ".jpeg")


class _Prepared(NamedTuple):
    """A slice before compression: `image` uint8, `source` its original JPEG file if any, `row` and `pixels`."""

    image: NDArray[np.uint8]
    label: NDArray[np.uint8]
    source: bytes | None
    row: tuple[int, int, int, int]
    pixels: tuple[int, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `pack`."""
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders with a dataset.json")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    parser.add_argument("--split", choices=SPLITS, default="training")
    parser.add_argument("--size", type=int, default=256, help="side in pixels of the slices' canvas (default: 256)")
    parser.add_argument("--quality", type=int, default=95, help="WebP quality of images (default: 95)")
    parser.add_argument("--weight", nargs="*", default=[], metavar="NAME=W", help="sampling weight of a data set")
    parser.add_argument(
        "--most", nargs="*", default=[], metavar="NAME=N", help="largest number of slices of a data set"
    )
    parser.add_argument(
        "--limit", type=int, default=PACK_LIMIT, help=f"largest size of the file in bytes (default: {PACK_LIMIT:,})"
    )
    parser.add_argument(
        "--tree", type=Path, help=f"also check that this repository and the pack take at most {TREE_LIMIT:,} bytes"
    )
    parser.add_argument("--initial", type=Path, help="initial checkpoint, which counts with --tree")


def run(arguments: argparse.Namespace) -> int:
    """Write the pack; returns 1 and writes nothing if the pack, or the repository with it, is too large."""
    if not 0 <= arguments.quality <= 100:
        raise ValueError(f"--quality must lie in 0..100, got {arguments.quality}")
    datasets = labelled_datasets(arguments.data, arguments.split, arguments.size)
    names = {dataset.name for dataset in datasets}
    weights = named_values("--weight", arguments.weight, names)
    maxima = named_values("--most", arguments.most, names)
    sets = []
    for dataset in datasets:
        kept = round(maxima[dataset.name]) if dataset.name in maxima else None
        part = pack_set(
            dataset,
            arguments.split,
            size=arguments.size,
            quality=arguments.quality,
            weight=weights.get(dataset.name, 1.0),
            maximum=kept,
        )
        sets.append(part)
        left_out = f", {part.about['left out']} left out" if part.about["left out"] else ""
        print(f"{dataset.name}: {len(part.slices)} slices{left_out}, {part.bytes:,} bytes")
    content = pack_bytes(sets, split=arguments.split, size=arguments.size)
    if not _is_small_enough(sets, len(content), arguments):
        return 1
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(arguments.out, content)
    print(f"wrote {arguments.out}: {sum(len(part.slices) for part in sets)} slices, {len(content):,} bytes")
    return 0


def pack_set(
    dataset: Dataset, split: str, *, size: int, quality: int, weight: float = 1.0, maximum: int | None = None
) -> PackedSet:
    """Compress at most `maximum` slices of a data set; four of five show a structure, if there are enough.

    A slice keeps its own size or gets that of the canvas, whichever is smaller. A JPEG picture stays as its original
    file if that is smaller. Errors of `load_case` pass through.
    """
    cases = dataset.cases(split)
    prepared = [
        one
        for number, case in enumerate(progress_bar(cases, dataset.name, leave=False))
        for one in _prepare(dataset, case, number, size)
    ]
    chosen = _chosen(prepared, maximum)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        slices = list(threads.map(lambda one: _compress(one, quality), chosen))
    about = {
        "name": dataset.name,
        "modality": dataset.modality,
        "anatomy": dataset.anatomy,
        "classes": dict(dataset.classes),
        "cases": [case.name for case in cases],
        "patients": [case.patient for case in cases],
        "channels": max(slice_counts(case)[1] for case in cases),
        "weight": weight,
        "licence": json.loads((dataset.folder / "dataset.json").read_text(encoding="utf-8")).get(
            "licence", "not stated"
        ),
        "left out": len(prepared) - len(chosen),
    }
    return PackedSet(about, slices)


def _prepare(dataset: Dataset, case: Case, number: int, size: int) -> Iterator[_Prepared]:
    loaded = load_case(dataset, case)
    assert loaded.labels is not None  # labelled_datasets has checked it
    before = (loaded.labels.shape[1], loaded.labels.shape[2])
    geometry = Geometry.fit(before, size)
    is_source = case.image.suffix.lower() in _SOURCE_SUFFIXES
    source = case.image.read_bytes() if is_source else None
    for position, (image, label) in enumerate(zip(loaded.images, loaded.labels, strict=True)):
        picture, small, pixels = to_canvas(image, label, list(dataset.classes), geometry)
        if max(before) <= size:  # the image is enlarged when the pack is opened
            picture, small = (image * 255).round().astype(np.uint8), label
        elif image.ndim == 2:
            picture = picture[..., 0]
        yield _Prepared(picture, small, source, (number, position, *geometry.resized), tuple(pixels))


def _chosen(prepared: Sequence[_Prepared], maximum: int | None) -> list[_Prepared]:
    """At most `maximum` slices, evenly spaced among those that show a structure and among those that do not."""
    if maximum is None or len(prepared) <= maximum:
        return list(prepared)
    shows = np.array([one.label.any() for one in prepared])
    shown, empty = np.flatnonzero(shows), np.flatnonzero(~shows)
    kept = evenly_spaced(shown, maximum - min(len(empty), maximum // _EMPTY_SLICE_RATIO))
    return [prepared[number] for number in sorted([*kept, *evenly_spaced(empty, maximum - len(kept))])]


def _compress(one: _Prepared, quality: int) -> PackedSlice:
    image = encode_image(np.ascontiguousarray(one.image), quality)
    is_source = one.source is not None and len(one.source) < len(image)
    if is_source and one.source is not None:
        image = one.source
    label = encode_label(np.ascontiguousarray(one.label))
    return PackedSlice(image, label, (*one.row, int(is_source)), one.pixels)


def _is_small_enough(sets: Sequence[PackedSet], size: int, arguments: argparse.Namespace) -> bool:
    """Whether pack and repository are within their limits; prints the sizes and, if not, the largest data sets."""
    fits = bool(size <= arguments.limit)
    if not fits:
        largest = sorted(sets, key=lambda part: part.bytes, reverse=True)[:5]
        shares = ", ".join(f"{part.about['name']} {part.bytes:,}" for part in largest)
        print(
            f"error: the pack would take {size:,} bytes, {size - arguments.limit:,} more than the limit of "
            f"{arguments.limit:,}; largest sets: {shares}. Use a smaller --size or --quality, --most NAME=N or fewer "
            "folders. Nothing was written",
            file=sys.stderr,
        )
    if arguments.tree is not None:
        weights = _weights_of(arguments.initial)
        tracked = _tracked(arguments.tree)
        others = sum(path.stat().st_size for path in (tracked | weights) - {arguments.out.resolve()})
        total = others + size
        kept = total <= TREE_LIMIT
        message = f"tracked files and initial weights {others:,} bytes, with the pack {total:,} of {TREE_LIMIT:,}"
        if kept:
            print(message)
        else:
            print(f"error: {message}: {total - TREE_LIMIT:,} too many", file=sys.stderr)
        fits = fits and kept
    return fits


def _weights_of(initial: Path | None) -> set[Path]:
    if initial is None:
        return set()
    stem = checkpoint_stem(initial)
    return {stem.with_name(stem.name + suffix).resolve() for suffix in (".safetensors", ".json")}


def _tracked(tree: Path) -> set[Path]:
    """The existing files that git tracks in a repository; ValueError if `tree` is not a repository."""
    done = subprocess.run(["git", "-C", str(tree), "ls-files", "-z"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"--tree {tree} is not a git repository: {done.stderr.strip()}")
    paths = ((tree / name).resolve() for name in done.stdout.split("\0") if name)
    return {path for path in paths if path.is_file()}
