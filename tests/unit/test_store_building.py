# SPDX-License-Identifier: Apache-2.0
"""Building a slice store: the same values as from whole volumes, in little memory, from where it was killed."""

from __future__ import annotations

import errno
import gzip
import json
import multiprocessing
import os
import resource
import signal
import sys
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import psutil
import pytest
import torch

from kprism_model import intensity
from kprism_model.data import case_slices, volume_files
from kprism_model.data.building import build_store, select, stored_slices
from kprism_model.data.datasets import load_case, read_dataset
from kprism_model.data.slices import SliceSet, SliceStore, to_canvas
from kprism_model.data.structures import StructureMap
from kprism_model.intensity import IntensityRange
from kprism_model.orientation import SliceOrientation
from kprism_model.preprocess import Geometry
from tests.unit.dataset_files import rectangle, write_dataset
from tests.unit.kill_at_rename import status_of_copy, status_of_killed

SHAPE = (40, 50, 21)
SAGITTAL = np.array([[0.0, 0, 3, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
RESLICED = np.diag([3.0, 1, 1, 1])  # slices lie along the first axis of the file


def build(folders: list[Path], out: Path, **options: Any) -> SliceStore:
    return build_store(folders, out, **{"size": 32, "progress": False, **options})


def volume_label(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    label = np.zeros(shape, np.uint8)
    label[5:20, 6:25, 3:9] = 1
    label[15:30, 10:18, 5:15] = 2
    return label


def noise(dtype: Any, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    values = np.random.default_rng(0).normal(100, 300, shape)
    return np.clip(values, 0, 255).astype(dtype) if dtype == np.uint8 else values.astype(dtype)


def with_odd_values() -> np.ndarray:
    image = noise(np.float32)
    image[::7, 3, 2], image[0, 0, 0], image[1, 0, 0] = np.nan, np.inf, -np.inf
    return image


def write_scaled(path: Path, stored: np.ndarray, slope: float, intercept: float) -> None:
    """A volume with these stored numbers, a slope and an intercept."""
    header = nib.Nifti1Header()
    header.set_data_dtype(stored.dtype)
    header.set_data_shape(stored.shape)
    header.set_sform(np.diag([1, 1, 3, 1]), 1)
    header.set_slope_inter(slope, intercept)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    content = header.binaryblock + bytes(4) + stored.tobytes(order="F")
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_big_endian(path: Path, stored: np.ndarray) -> None:
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(stored.dtype.newbyteorder(">"))
    nib.save(nib.Nifti1Image(stored, np.diag([1, 1, 3, 1]), header), path)


def set_of(folder: Path, image: np.ndarray | Callable[[Path], None], suffix: str, **given: Any) -> Path:
    """A data set of one volume, which an array or a function that writes its file gives."""
    write_dataset(
        folder,
        [volume_label()],
        classes=["a", "b"],
        modality=given.get("modality", "MRI"),
        images=[image if isinstance(image, np.ndarray) else noise(np.float32)],
        affine=given.get("affine", np.diag([1, 1, 3, 1])),
    )
    old, new = folder / "images" / "case_0.nii.gz", folder / "images" / f"case_0{suffix}"
    if not isinstance(image, np.ndarray):
        image(new)
    elif suffix == ".nii":
        nib.save(nib.load(old), new)
    content = json.loads((folder / "dataset.json").read_text())
    content["training"][0]["image"] = f"images/case_0{suffix}"
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def whole_range(values: np.ndarray, samples: int) -> IntensityRange:
    """The range of intensities without a known unit, from copies of the whole volume."""
    finite = values[np.isfinite(values)]
    bottom, top = float(finite.min()), float(finite.max())
    sample = values.reshape(-1)[:: max(1, values.size // samples)].astype(np.float64)
    sample = np.nan_to_num(sample, nan=bottom, posinf=top, neginf=bottom)
    high = float(np.percentile(sample[sample > bottom], 99.5))
    return IntensityRange(float(np.percentile(sample, 0.5)), high, bottom, top)


VOLUMES: dict[str, tuple[np.ndarray | Callable[[Path], None], str, dict[str, Any]]] = {
    "packed": (noise(np.int16), ".nii.gz", {}),
    "plain": (noise(np.float64), ".nii", {}),
    "odd values": (with_odd_values(), ".nii.gz", {}),
    "8 bits": (noise(np.uint8), ".nii.gz", {}),
    "CT": (noise(np.int16), ".nii.gz", {"modality": "CT"}),
    "sagittal": (noise(np.int16), ".nii", {"affine": SAGITTAL}),
    "slices along the first axis": (noise(np.float32), ".nii.gz", {"affine": RESLICED}),
    "slope": (lambda path: write_scaled(path, noise(np.int16), 0.5, -3.25), ".nii.gz", {}),
    "slope, plain": (lambda path: write_scaled(path, noise(np.uint8), -2.0, 7.0), ".nii", {}),
    "intercept": (lambda path: write_scaled(path, noise(np.int16), 1.0, 1024.0), ".nii.gz", {"modality": "CT"}),
    "big endian": (lambda path: write_big_endian(path, noise(np.int16)), ".nii.gz", {}),
}


@pytest.mark.parametrize("name", VOLUMES)
def test_slices_are_those_of_the_whole_volume(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, suffix, given = VOLUMES[name]
    folder = set_of(tmp_path / "set", image, suffix, **given)
    monkeypatch.setattr(intensity, "SAMPLES", 5000)  # a large volume in small: not every voxel counts for its range,
    monkeypatch.setattr(intensity, "_VALUES_AT_ONCE", 3000)  # it is read in parts,
    monkeypatch.setattr(volume_files, "LARGE", 1000)  # and mapped
    (part,) = build([folder], tmp_path / "store", size=64).sets
    (case,) = read_dataset(folder).cases("training")
    file = nib.load(case.image)
    orientation = SliceOrientation.of(file.affine, file.shape)
    values = orientation.to_slices(np.asarray(file.dataobj))
    labels = orientation.to_slices(np.asarray(nib.load(case.label).dataobj))
    hounsfield = given.get("modality") == "CT"
    scale = IntensityRange(-500.0, 500.0, -9.0, 9.0) if hounsfield else whole_range(values, 5000)
    geometry = Geometry.fit(values.shape[1:], 64)
    height, width = geometry.resized
    assert len(part) == len(values) and part.images.shape[3] == 1
    assert part.content.tolist() == [[height, width]] * len(values)
    for row, (image_slice, label) in enumerate(zip(scale.scale(values), labels, strict=True)):
        picture, small, pixels = to_canvas(image_slice, label, [1, 2], geometry)
        np.testing.assert_array_equal(part.images[row, :height, :width, 0], picture[..., 0])
        np.testing.assert_array_equal(part.labels[row, :height, :width], small)
        assert part.pixels[row].tolist() == pixels
    loaded = load_case(read_dataset(folder), case)
    np.testing.assert_array_equal(loaded.images, scale.scale(values))
    np.testing.assert_array_equal(loaded.labels, labels)


def test_a_large_volume_takes_little_memory(tmp_path: Path) -> None:
    """Its voxels are not copied: arrays of its size would be 34 MB and more."""
    image = np.zeros((256, 256, 260), np.int16)
    image[::3] = 700
    folder = write_dataset(
        tmp_path / "set", [volume_label(image.shape)], images=[image], classes=["a", "b"], modality="CT"
    )
    assert image.nbytes > volume_files.LARGE
    del image
    tracemalloc.start()
    try:
        store = build([folder], tmp_path / "store")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(store) == 260 and peak < 30e6  # the labels, which are small enough, and a few slices
    assert sorted(path.name for path in (tmp_path / "store" / "set").iterdir()) == [
        "images.npy",
        "index.json",
        "labels.npy",
        "slices.npy",
    ]


class TestStructures:
    def folder(self, tmp_path: Path) -> Path:
        labels = [volume_label(), np.zeros(SHAPE, np.uint8), volume_label()]
        labels[2][labels[2] == 2] = 0
        images = [np.full(SHAPE, 10 * number, np.float32) for number in range(3)]
        for number, image in enumerate(images):
            image[..., :] += np.arange(SHAPE[2])
            image[0, 0, 0] = -number
        return write_dataset(
            tmp_path / "set", labels, images=images, classes=["a", "b", "c"], affine=np.diag([1, 1, 3, 1])
        )

    def test_labels_are_mapped_and_slices_without_a_structure_left_out(self, tmp_path: Path) -> None:
        folder = self.folder(tmp_path)
        (every,) = build([folder], tmp_path / "every", size=64).sets
        wanted = {"set": StructureMap.of({1: "a", 2: "b", 3: "c"}, {"B": ["b"]})}
        (mapped,) = build([folder], tmp_path / "mapped", size=64, structures=wanted).sets
        (shown,) = build([folder], tmp_path / "shown", size=64, structures=wanted, only_shown=True).sets
        assert len(every) == len(mapped) == 63 and every.classes == {1: "a", 2: "b", 3: "c"}
        assert mapped.classes == shown.classes == {1: "B"}
        np.testing.assert_array_equal(mapped.pixels[:, 0] > 0, [5 <= z < 15 for z in range(21)] + [False] * 42)
        assert shown.case.tolist() == [0] * 10 and shown.number.tolist() == list(range(5, 15))
        rows = np.flatnonzero(mapped.pixels[:, 0])
        for name in ("images", "labels", "content", "pixels"):
            np.testing.assert_array_equal(getattr(shown, name), getattr(mapped, name)[rows])
        np.testing.assert_array_equal(mapped.images, every.images)
        assert set(np.unique(mapped.labels)) == {0, 1} and len(shown.case_names) == 3

    def test_joined_classes_are_resized_together(self, tmp_path: Path) -> None:
        """Two classes in a checkerboard: each alone loses its pixels at half the size, both together do not."""
        label = np.indices((64, 64)).sum(axis=0) % 2 + 1
        folder = write_dataset(tmp_path / "set", [label.astype(np.uint8)], classes=["a", "b"])
        joined = build(
            [folder], tmp_path / "store", structures=lambda one: StructureMap.of(one.classes, {"ab": ["a", "b"]})
        )
        assert (joined.sets[0].labels == 1).all() and joined.sets[0].pixels.tolist() == [[1024]]

    def test_what_a_structure_loses_at_the_size_of_the_store_is_not_shown(self, tmp_path: Path) -> None:
        speck = rectangle((640, 640), slice(300, 301), slice(300, 301))
        folder = write_dataset(tmp_path / "set", [rectangle((640, 640), slice(0, 300), slice(0, 90)), speck])
        (part,) = build([folder], tmp_path / "store", only_shown=True).sets
        assert part.case.tolist() == [0] and (part.pixels > 0).all()

    def test_a_set_that_shows_nothing_is_refused(self, tmp_path: Path) -> None:
        folder = write_dataset(tmp_path / "set", [np.zeros((32, 32), np.uint8)], classes=["a", "b"])
        with pytest.raises(ValueError, match=r"set: no slice of the split training shows a, b"):
            build([folder], tmp_path / "store", only_shown=True)
        assert list((tmp_path / "store").iterdir()) == []

    def test_options_and_structures_are_part_of_what_is_current(self, tmp_path: Path) -> None:
        folder, out = self.folder(tmp_path), tmp_path / "store"
        options: list[dict[str, Any]] = [
            {},
            {"only_shown": True},
            {"structures": lambda one: StructureMap.of(one.classes, {"b": ["b"]})},
            {"structures": lambda one: StructureMap.of(one.classes, {"b": ["a"]})},
            {"size": 64},
        ]
        for chosen in options:
            build([folder], out, **chosen)
            counts = [stored_slices(select([folder], **{"size": 32, **one})[0], out) for one in options]
            number = options.index(chosen)
            assert [count is not None for count in counts] == [place == number for place in range(len(options))]
            assert counts[number] == (18 if "only_shown" in chosen else 63)


def content_of(part: SliceSet) -> list[list[Any]]:
    arrays = (part.images, part.labels, part.case, part.number, part.content, part.pixels)
    return [np.asarray(array).tolist() for array in arrays]


def folders_of(tmp_path: Path) -> list[Path]:
    """A data set of five volumes, in five parts if these are small, and one of four pictures."""
    labels, rng = [np.roll(volume_label(), number, axis=2) for number in range(5)], np.random.default_rng(1)
    images = [rng.normal(0, 100, SHAPE).astype(np.float32) for _ in labels]
    volumes = write_dataset(
        tmp_path / "volumes", labels, images=images, classes=["a", "b"], affine=np.diag([1, 1, 3, 1])
    )
    pictures = [rectangle((40 + number, 30), slice(5, 20), slice(3, 13 + number)) for number in range(4)]
    return [volumes, write_dataset(tmp_path / "pictures", pictures)]


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(case_slices, "_PART_SLICES", 2)


KILLS = [1, 3, 8, 9, 12, 14, 15, 16, 18, 21, 22]
"""Renames: two keys; records of 7 parts; marks of 5, table, description and place of the volumes; the same of 2 parts
of the pictures; the list of sets."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[list[Any]]:
    """What a build that nobody stops gives."""
    folder = tmp_path_factory.mktemp("whole")
    return [content_of(part) for part in build(folders_of(folder), folder / "store", only_shown=True).sets]


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("number", KILLS)
def test_a_killed_build_goes_on_where_it_stopped(
    number: int, whole: list[list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders, out = folders_of(tmp_path), tmp_path / "store"
    assert status_of_killed(lambda: build(folders, out, only_shown=True), number) == -signal.SIGKILL
    opened: list[tuple[str, str]] = []

    def counted(real: Callable[..., Any], dataset: Any, *given: Any) -> Any:
        opened.append((real.__name__, dataset.name))
        return real(dataset, *given)

    for name in ("open_images", "open_labels"):
        monkeypatch.setattr(case_slices, name, partial(counted, getattr(case_slices, name)))
    store = build(folders, out, only_shown=True)
    assert [content_of(part) for part in store.sets] == whole
    assert opened.count(("open_labels", "volumes")) == min(5, max(0, 7 - number))
    assert opened.count(("open_labels", "pictures")) == 2 * min(2, max(0, 9 - number))
    assert opened.count(("open_images", "volumes")) == min(5, max(0, 14 - number))
    assert opened.count(("open_images", "pictures")) == 2 * min(2, max(0, 19 - number))
    files = {path.name for path in out.rglob("*") if path.parent != out or path.suffix != ".part"}
    assert files == {"pictures", "volumes", "store.json", "images.npy", "labels.npy", "slices.npy", "index.json"}


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize(
    "changed", ["volumes/images/case_1.nii.gz", "volumes/dataset.json", "pictures/labels/case_3.png"]
)
def test_a_changed_input_begins_its_set_again(changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders, out = folders_of(tmp_path), tmp_path / "store"
    assert status_of_killed(lambda: build(folders, out), 13) == -signal.SIGKILL
    file = tmp_path / changed
    if file.suffix == ".json":
        file.write_text(file.read_text().replace('"a"', '"other"'))
    else:
        os.utime(file, ns=(1, 1))
    opened = []
    monkeypatch.setattr(
        case_slices,
        "open_labels",
        lambda *given, real=case_slices.open_labels: opened.append(given[0].name) or real(*given),
    )
    store = build(folders, out)
    again = changed.split("/")[0]
    assert opened == [again] * (5 if again == "volumes" else 4)
    assert [content_of(part) for part in store.sets] == [
        content_of(part) for part in build(folders, tmp_path / "whole").sets
    ]
    assert store.sets[0].classes == {1: "other" if file.suffix == ".json" else "a", 2: "b"}


@pytest.mark.usefixtures("small_parts")
def test_the_number_of_processes_changes_nothing(tmp_path: Path) -> None:
    folders = folders_of(tmp_path)
    one, two = (build(folders, tmp_path / str(count), workers=count, size=64, only_shown=True) for count in (1, 2))
    for file in (path.relative_to(one.path) for path in one.path.rglob("*") if path.is_file()):
        assert (one.path / file).read_bytes() == (two.path / file).read_bytes()
    assert len(one) == len(two) == 5 * 12 + 4
    for number in (3, 1):
        (folders[0] / "labels" / f"case_{number}.nii.gz").write_bytes(b"broken")
    for count in (1, 2):
        with pytest.raises(ValueError, match=r"labels/case_1.nii.gz cannot be read as NIfTI"):
            build(folders, one.path, workers=count, size=64)
    assert sorted(path.name for path in one.path.iterdir()) == [
        ".pictures.building",
        "pictures",
        "store.json",
        "volumes",
    ]
    with pytest.raises(ValueError, match="number of processes must be 1 or more, got 0"):
        build(folders, one.path, workers=0)


def build_alone(folders: list[Path], out: Path) -> None:
    torch.set_num_threads(1)  # a copy of a process lacks its threads
    build(folders, out, only_shown=True)


@pytest.mark.usefixtures("small_parts")
def test_two_programs_build_one_store(whole: list[list[Any]], tmp_path: Path) -> None:
    """As the processes of one training may: the second waits for the first."""
    folders, out = folders_of(tmp_path), tmp_path / "store"
    context = multiprocessing.get_context("fork")
    programs = [context.Process(target=build_alone, args=(folders, out)) for _ in range(3)]
    for one in programs:
        one.start()
    for one in programs:
        one.join()
    assert [one.exitcode for one in programs] == [0, 0, 0]
    assert [content_of(part) for part in SliceStore.open(out).sets] == whole


class TestRoom:
    def test_a_store_larger_than_the_disk_is_refused_before_anything_is_read(self, tmp_path: Path) -> None:
        folder = write_dataset(tmp_path / "set", [rectangle((8, 8), slice(2), slice(2))] * 10)
        with pytest.raises(OSError, match=r"the slices need 703,687.44 GB in .*store, where .* GB are free: make room"):
            build([folder], tmp_path / "store", size=1 << 22)
        assert not list((tmp_path / "store").rglob("*.npy"))

    def test_a_disk_that_gets_full_is_named_and_what_was_finished_is_used(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The system refuses files above a limit, here for one process, as a full disk does."""
        folders, out = folders_of(tmp_path)[:1], tmp_path / "store"

        def limited() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
            with pytest.raises(OSError, match=r"the slices need 0.00 GB in .*store, where .* free \(\[Errno 27\]"):
                build(folders, out)

        assert status_of_copy(limited) == 0
        assert not list(out.rglob("*.npy"))
        monkeypatch.setattr(case_slices, "open_labels", None)  # they are there
        assert len(build(folders, out)) == 105

    def test_room_for_a_large_volume(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(volume_files, "LARGE", 1000)
        folders, out = folders_of(tmp_path)[:1], tmp_path / "store"

        def limited() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
            with pytest.raises(
                OSError, match=r"labels/case_0.nii.gz needs 0.00 GB in .*building while it is read"
            ) as got:
                build(folders, out)
            assert got.value.__cause__ is not None and got.value.__cause__.errno == errno.EFBIG  # type: ignore[attr-defined]

        assert status_of_copy(limited) == 0


@pytest.mark.parametrize("damage", ["cut", "changed", "no gzip", "header only"])
def test_damaged_volumes_are_named(damage: str, tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "set", [volume_label()], images=[noise(np.int16)], classes=["a", "b"])
    file = folder / "images" / "case_0.nii.gz"
    whole = file.read_bytes()
    file.write_bytes(
        {
            "cut": whole[: len(whole) // 2],
            "changed": whole[:3000] + bytes(3000) + whole[6000:],
            "no gzip": b"none" + whole,
            "header only": gzip.compress(gzip.decompress(whole)[:352]),
        }[damage]
    )
    with pytest.raises(ValueError, match=r"images/case_0.nii.gz cannot be read as NIfTI"):
        build([folder], tmp_path / "store")
    dataset = read_dataset(folder)
    with pytest.raises(ValueError, match=r"images/case_0.nii.gz cannot be read as NIfTI"):
        load_case(dataset, dataset.cases("training")[0])
    assert list((tmp_path / "store").iterdir()) == []


def test_processes_end_with_the_build_that_started_them(tmp_path: Path) -> None:
    """However it ends: else they would go on writing beside the next build."""
    (folder, _), out = folders_of(tmp_path), tmp_path / "store"
    program = (
        "import sys; from pathlib import Path; from kprism_model.data import building, case_slices\n"
        "if __name__ == '__main__':\n"
        "    building.build_store([Path(sys.argv[1])], Path(sys.argv[2]), size=32, workers=2, progress=False)\n"
    )
    places = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), "OMP_NUM_THREADS": "1"}
    build = psutil.Popen([sys.executable, "-c", program, folder, out], env=places)
    started: list[psutil.Process] = []
    while len(started) < 2:
        assert build.poll() is None
        started = [one for one in build.children() if "spawn_main" in " ".join(one.cmdline())]
    build.kill()
    build.wait()
    _, alive = psutil.wait_procs(started, timeout=60)
    assert not alive
