# SPDX-License-Identifier: Apache-2.0
"""A folder as a datastore: quick looks at files never refuse what can be read, and what is known survives changes."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import nrrd
import numpy as np
import pytest
import SimpleITK
from monailabel.datastore.local import LocalDatastore
from PIL import Image

from kprism_model.files import write_bytes
from lib.datastore import GuardedDatastore
from lib.errors import RequestError
from lib.file_checks import FileChecks
from lib.folder_listing import split_name
from lib.folder_store import FolderStore
from lib.image_ids import MAX_BYTES, problem_of_id
from lib.imaging.completeness import looks_complete
from lib.imaging.reading import SUFFIXES, files_of, read_image
from lib.label_arrivals import LabelArrivals
from lib.learning.strategies import FirstCase, RandomCase, why_none

EXTENSIONS = tuple(f"*{suffix}" for suffix in SUFFIXES)
VOXELS = np.arange(6 * 5 * 4, dtype=np.int16).reshape(6, 5, 4)
PIXELS = np.random.default_rng(0).integers(0, 255, (30, 20, 3)).astype(np.uint8)


def volume(values: np.ndarray = VOXELS) -> bytes:
    return bytes(nibabel.Nifti1Image(values, np.eye(4)).to_bytes())


def opened(folder: Path, *, auto_reload: bool = False) -> FolderStore:
    return FolderStore(str(folder), extensions=EXTENSIONS, auto_reload=auto_reload)


def eventually(condition: Callable[[], Any]) -> bool:
    deadline = time.monotonic() + 60
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def all_kinds(folder: Path) -> dict[str, bool]:
    """Writes files that can be read; returns name -> whether their beginning and end are enough to tell."""
    (folder / "plain.nii").write_bytes(volume())
    (folder / "packed.nii.gz").write_bytes(gzip.compress(volume()))
    (folder / "more_behind.nii").write_bytes(volume() + b"\0" * 100)
    (folder / "float.NII.GZ").write_bytes(gzip.compress(volume(VOXELS.astype(np.float64))))
    whole = volume()
    (folder / "two_streams.nii.gz").write_bytes(gzip.compress(whole[:400]) + gzip.compress(whole[400:]))
    (folder / "nifti2.nii").write_bytes(nibabel.Nifti2Image(VOXELS, np.eye(4)).to_bytes())
    header = nibabel.Nifti1Header(endianness=">")
    (folder / "big_endian.nii").write_bytes(nibabel.Nifti1Image(VOXELS, np.eye(4), header).to_bytes())
    (folder / "fourth_axis.nii").write_bytes(volume(VOXELS[..., None]))
    colour = np.zeros(VOXELS.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    colour["R"] = VOXELS
    (folder / "colour.nii").write_bytes(volume(colour))
    for encoding in ("raw", "gzip", "bzip2", "ascii"):
        nrrd.write(str(folder / f"{encoding}.nrrd"), VOXELS, {"encoding": encoding})
    picture = Image.fromarray(PIXELS)
    for name in ("a.png", "a.jpg", "a.JPEG", "a.bmp", "a.tif"):
        picture.save(folder / f"{name[-3:].lower()}_{name}")
    picture.save(folder / "progressive.jpg", progressive=True)
    (folder / "padded.jpg").write_bytes((folder / "jpg_a.jpg").read_bytes() + b"\0" * 5)
    (folder / "behind.jpg").write_bytes((folder / "jpg_a.jpg").read_bytes() + b"notes of a camera")
    picture.save(folder / "lzw.tif", compression="tiff_lzw")
    picture.save(folder / "big.tif", big_tiff=True)
    Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 200).save(folder / "sixteen.png")
    picture.quantize(16).save(folder / "palette.png")
    for name in ("meta.mha", "packed.mha", "two.mhd", "packed_two.mhd", "\u809d\u81d3.mhd"):
        image = SimpleITK.GetImageFromArray(np.ascontiguousarray(VOXELS.T))
        SimpleITK.WriteImage(image, str(folder / name), useCompression=name.startswith("packed"))
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(PIXELS, isVector=True), str(folder / "colour.mha"))
    slow = {"bzip2.nrrd", "ascii.nrrd", "bmp_a.bmp", "behind.jpg", "colour.mha"}
    names = [path.name for path in sorted(folder.iterdir()) if not path.name.endswith("raw")]
    return {name: name not in slow for name in names}


def test_a_quick_look_refuses_nothing_that_can_be_read(tmp_path: Path) -> None:
    read: list[str] = []
    checks = FileChecks(lambda path, name: (read.append(path.name), read_image(path, name)))
    for name, is_enough in all_kinds(tmp_path).items():
        read_image(tmp_path / name, name)
        assert looks_complete(tmp_path / name) == is_enough, name
        old = time.time() - 100
        os.utime(tmp_path / name, (old, old))
        assert checks.look(name, tmp_path / name, hand_out=True) is None, name


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_what_ends_too_early_does_not_look_complete(tmp_path: Path, share: float) -> None:
    for name in all_kinds(tmp_path):
        path = tmp_path / name
        if name not in ("more_behind.nii", "behind.jpg", "padded.jpg"):
            path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
            assert not looks_complete(path), name


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_voxels_beside_a_header_that_end_too_early_do_not_look_complete(tmp_path: Path, share: float) -> None:
    all_kinds(tmp_path)
    headers = list(tmp_path.glob("*.mhd"))
    assert len(headers) == 3
    for header in headers:
        (voxels,) = files_of(header)[1:]
        voxels.write_bytes(voxels.read_bytes()[: int(share * voxels.stat().st_size)])
        assert not looks_complete(header), header.name
        voxels.unlink()
        assert not looks_complete(header), header.name


def test_voxels_beside_a_header_that_change_make_another_image(tmp_path: Path) -> None:
    (tmp_path / "labels" / "final").mkdir(parents=True)
    header = tmp_path / "a.mhd"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.ascontiguousarray(VOXELS.T)), str(header))
    voxels, content = tmp_path / "a.raw", (tmp_path / "a.raw").read_bytes()
    header.write_text(header.read_text().replace("a.raw", "other name.raw"))
    store = opened(tmp_path, auto_reload=True)
    assert eventually(lambda: "a" in store.checks.refused()), "its voxels are not there"
    assert store.list_images() == []
    voxels.rename(tmp_path / "other name.raw")
    assert eventually(lambda: store.list_images() == ["a"])
    before = store.stamp("a")
    (tmp_path / "other name.raw").write_bytes(content[:-10])
    assert store.stamp("a") != before
    assert eventually(lambda: store.list_images() == [])
    (tmp_path / "other name.raw").write_bytes(content)
    assert eventually(lambda: store.list_images() == ["a"])


def test_a_file_is_read_as_a_whole_only_where_it_looks_damaged(tmp_path: Path) -> None:
    read: list[str] = []
    checks = FileChecks(lambda path, name: (read.append(path.name), read_image(path, name)))
    (tmp_path / "good.nii.gz").write_bytes(gzip.compress(volume()))
    (tmp_path / "four.nii").write_bytes(volume(np.zeros((3, 3, 3, 3), np.int16)))
    for _ in range(3):
        assert checks.look("good", tmp_path / "good.nii.gz") is None
    assert read == []
    assert checks.look("good", tmp_path / "good.nii.gz", hand_out=True) is None
    assert checks.look("good", tmp_path / "good.nii.gz", hand_out=True) is None
    assert read == ["good.nii.gz"]
    assert checks.look("four", tmp_path / "four.nii", hand_out=True) == "has 4 axes (3 x 3 x 3 x 3); expected 2 or 3"
    assert checks.refused() == {"four": "has 4 axes (3 x 3 x 3 x 3); expected 2 or 3"}
    (tmp_path / "four.nii").write_bytes(volume())
    assert checks.look("four", tmp_path / "four.nii") is None and checks.refused() == {}


def test_an_image_that_cannot_be_opened_is_refused_until_its_file_changes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.nii").write_bytes(volume())
    (tmp_path / "link.nii").symlink_to(tmp_path / "b.nii")
    store = opened(tmp_path)
    for image in ("a", "link"):
        path = Path(store.opened_image(image))
        store.refuse(path, RequestError(f"image {image!r} has a voxel that cannot be decompressed"))
    assert store.list_images() == ["b"]
    assert [tuple(entry) for entry in store.not_served()] == [
        ("a.nii", "has a voxel that cannot be decompressed"),
        ("link.nii", "has a voxel that cannot be decompressed"),
    ]
    assert not store.can_be_served("a") and FirstCase()({}, store) == {"id": "b"}
    (tmp_path / "a.nii").write_bytes(volume(VOXELS + 1))
    assert store.can_be_served("a") and store.list_images() == ["a", "b"]


@pytest.fixture
def as_user() -> Iterator[Path]:
    """A folder of a user who is not root: root may read everything."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        is_root = os.geteuid() == 0
        if is_root:
            os.seteuid(65534)
        yield Path(name)
        if is_root:
            os.seteuid(0)


def test_files_and_folders_that_may_not_be_read_are_listed(as_user: Path) -> None:
    (as_user / "labels" / "final").mkdir(parents=True)
    for name in ("a", "b"):
        (as_user / f"{name}.nii").write_bytes(volume())
        (as_user / "labels" / "final" / f"{name}.nii").write_bytes(volume((VOXELS > 50).astype(np.uint8)))
    store = opened(as_user)
    (as_user / "a.nii").chmod(0)
    (as_user / "labels" / "final").chmod(0)
    assert not store.can_be_served("a") and store.can_be_served("b")
    store.refresh()
    assert store.get_labels_by_image_id("b") == {"final": "b"}  # nothing is lost for it
    assert {entry.name: entry.reason for entry in store.not_served()} == {
        "a.nii": "is not a readable .nii file: [Errno 13] Permission denied: 'a.nii'",
        "labels/final": "cannot be listed: Permission denied",
    }
    (as_user / "a.nii").chmod(0o600)
    (as_user / "labels" / "final").chmod(0o700)
    store.refresh()
    assert store.can_be_served("a") and store.not_served() == []


def test_ids_of_a_site_stay(tmp_path: Path) -> None:
    for name in ("vol.png", "plain.nii.gz", "a.b.nii"):
        (tmp_path / name).write_bytes(b"image")
    LocalDatastore(str(tmp_path), extensions=EXTENSIONS).update_image_info("vol", {"patient": "anna"})
    for name in ("vol.nii.gz", "vol.NRRD", "Vol.nii.gz"):
        (tmp_path / name).write_bytes(b"image")
    for _ in range(2):
        store = opened(tmp_path)
        assert sorted(store.list_images()) == ["Vol", "a.b", "plain", "vol"]
        assert store.get_image_uri("vol") == str(tmp_path.resolve() / "vol.png")
        assert store.get_image_info("vol")["patient"] == "anna"
        assert {entry.name for entry in store.not_served()} == {"vol.nii.gz", "vol.NRRD"}
        store.refresh()
    (tmp_path / "vol.png").unlink()
    store.refresh()
    assert store.get_image_uri("vol") == str(tmp_path.resolve() / "vol.nii.gz")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("scan.nii.gz.fixed.nii.gz", ("scan.nii.gz.fixed", ".nii.gz")),
        ("a.png.PNG", ("a.png", ".PNG")),
        ("up.NII.GZ", ("up", ".NII.GZ")),
        ("x.nii", ("x", ".nii")),
        ("İ.Nii.gz", ("İ", ".Nii.gz")),
        ("label.bin", ("label", ".bin")),
        ("none", ("none", "")),
    ],
)
def test_an_id_and_its_extension_make_the_name_again(name: str, parts: tuple[str, str]) -> None:
    assert split_name(name, EXTENSIONS) == parts
    assert "".join(parts) == name


@pytest.mark.parametrize("image_id", ["", ".a", "a/b", "a\\b", "a\nb", "a\0b", "\udcfc", "x" * 247, "肝" * 83])
def test_names_that_cannot_be_ids(image_id: str) -> None:
    assert problem_of_id(image_id) is not None


@pytest.mark.parametrize("name", ["x" * 255, "肝" * 85, "y" * 248 + ".nii.gz"])
def test_a_file_of_any_name_is_written(tmp_path: Path, name: str) -> None:
    write_bytes(tmp_path / name, b"content")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(name, b"content")]
    assert problem_of_id("x" * MAX_BYTES) is None and problem_of_id("肝" * (MAX_BYTES // 3)) is None


def test_an_image_that_was_away_has_the_names_of_its_label_again(tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_bytes(volume())
    store = opened(tmp_path)
    label = tmp_path.parent / "label.nii"
    label.write_bytes(volume((VOXELS > 50).astype(np.uint8)))
    store.save_label("a", str(label), "final", {"label_names": {"liver": 1}})
    (tmp_path / "a.nii").rename(tmp_path.parent / "away.nii")
    store.refresh()
    assert store.list_images() == [] and [entry.name for entry in store.not_served()] == ["labels/final/a.nii"]
    (tmp_path.parent / "away.nii").rename(tmp_path / "a.nii")
    store.refresh()
    assert store.get_label_info("a", "final")["label_names"] == {"liver": 1}


def test_a_share_that_is_not_mounted_takes_nothing_away(tmp_path: Path) -> None:
    folder = tmp_path / "studies"
    folder.mkdir()
    (folder / "a.nii").write_bytes(volume())
    store = opened(folder)
    store.update_image_info("a", {"patient": "anna"})
    folder.rename(tmp_path / "elsewhere")
    folder.mkdir()
    with pytest.raises(OSError, match="labels"):
        store.refresh()
    assert store.list_images() == ["a"]
    shutil.rmtree(folder)
    (tmp_path / "elsewhere").rename(folder)
    store.refresh()
    assert store.get_image_info("a")["patient"] == "anna"


def test_only_damaged_images_are_no_next_case(tmp_path: Path) -> None:
    for name, content in {"a.nii": b"", "b.nii": volume()[:-1], "c.png": b"no picture"}.items():
        (tmp_path / name).write_bytes(content)
    store = opened(tmp_path)
    assert FirstCase()({}, store) is None and RandomCase()({"current": "a"}, store) is None
    assert "holds no image that can be segmented. Found: 2 files of type .nii, 1 file of type .png" in why_none(store)
    assert store.status() == {"total": 0, "completed": 0, "label_tags": {}, "not_served": 3}
    (tmp_path / "b.nii").write_bytes(volume())
    store.check_all()
    assert FirstCase()({}, store) == {"id": "b"}
    assert store.nothing_to_serve() is None


@pytest.mark.parametrize("poll", [False, True], ids=["told by the system", "polled"])
def test_labels_of_others_are_given_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, poll: bool) -> None:
    monkeypatch.setattr(GuardedDatastore, "_is_on_mount", lambda self, path: poll)
    for name in "abc":
        (tmp_path / f"{name}.nii").write_bytes(volume())
    store = opened(tmp_path, auto_reload=True)
    heard: list[tuple[str, str]] = []
    store.on_label = lambda image, label: heard.append(("label", image))
    store.on_removed = lambda image: heard.append(("removed", image))
    labels = tmp_path / "labels" / "final"
    own = tmp_path.parent / "own.nii"
    own.write_bytes(volume((VOXELS > 50).astype(np.uint8)))
    store.save_label("c", str(own), "final", {"label_names": {"liver": 1}})
    shutil.copy(own, labels / "a.nii")
    assert eventually(lambda: heard == [("label", "a")])  # and not of our own
    own.rename(labels / "b.nii")
    assert eventually(lambda: heard == [("label", "a"), ("label", "b")])
    (labels / "a.nii").write_bytes(volume((VOXELS > 60).astype(np.uint8)))
    assert eventually(lambda: heard[2:] == [("label", "a")])
    (labels / "a.nii").unlink()
    assert eventually(lambda: heard[3:] == [("removed", "a")])
    (tmp_path / "b.nii").unlink()
    assert eventually(lambda: heard[4:] == [("removed", "b")])


@pytest.mark.parametrize("kind", ["labels exchanged", "image behind a link", "label behind a link"])
def test_changes_of_which_the_system_does_not_tell_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The system watches the folders that were there at the start, and not what links lead to."""
    monkeypatch.setattr("lib.folder_store.LIST_SECONDS", 0.5)
    studies, elsewhere = tmp_path / "studies", tmp_path / "elsewhere"
    labels = studies / "labels" / "final"
    labels.mkdir(parents=True)
    elsewhere.mkdir()
    mask = volume((VOXELS > 50).astype(np.uint8))
    for name in ("far.nii", "label.nii"):
        (elsewhere / name).write_bytes(volume() if name == "far.nii" else mask)
    (studies / "a.nii").symlink_to(elsewhere / "far.nii")
    (labels / "a.nii").symlink_to(elsewhere / "label.nii")
    store = opened(studies, auto_reload=True)
    heard: list[str] = []
    store.on_label = lambda image, label: heard.append(image)
    store.on_removed = heard.append
    assert eventually(lambda: store.checks.known("a")) and not heard
    if kind == "labels exchanged":
        (studies / "labels").rename(tmp_path / "before")
        labels.mkdir(parents=True)
        (labels / "a.nii").write_bytes(mask)
        assert eventually(lambda: heard == ["a"])
        time.sleep(1)
        (labels / "a.nii").write_bytes(volume((VOXELS > 60).astype(np.uint8)))
        assert eventually(lambda: heard == ["a", "a"])
        (labels / "a.nii").unlink()
        assert eventually(lambda: heard == ["a", "a", "a"])
    elif kind == "label behind a link":
        (elsewhere / "label.nii").write_bytes(volume((VOXELS > 60).astype(np.uint8)))
        assert eventually(lambda: heard == ["a"])
    else:
        (elsewhere / "far.nii").write_bytes(b"no image" * 100)
        assert eventually(lambda: "does not begin with a NIfTI header" in str(store.not_served()))
        (elsewhere / "far.nii").write_bytes(volume(VOXELS[::-1].copy()))
        assert eventually(lambda: not store.not_served())


def test_labels_in_a_folder_behind_a_link_are_given_out(tmp_path: Path) -> None:
    studies, elsewhere = tmp_path / "studies", tmp_path / "elsewhere"
    (studies / "labels").mkdir(parents=True)
    elsewhere.mkdir()
    (studies / "labels" / "final").symlink_to(elsewhere)
    (studies / "a.nii").write_bytes(volume())
    store = opened(studies, auto_reload=True)
    heard: list[str] = []
    store.on_label = lambda image, label: heard.append("label")
    store.on_removed = lambda image: heard.append("removed")
    for count, threshold in enumerate((50, 60), 1):
        (elsewhere / "a.nii").write_bytes(volume((threshold < VOXELS).astype(np.uint8)))
        assert eventually(lambda expected=["label"] * count: heard == expected)
    (elsewhere / "a.nii").unlink()
    assert eventually(lambda: heard == ["label", "label", "removed"])


@pytest.mark.parametrize("content", [b"", b'{"na', b"[]", b"{}", b'{"objects": {"a": null}}', b"\xff\xfe{"])
def test_a_damaged_index_is_made_anew_and_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    """As a loss of power leaves it: the images and the labels in the folder are there all the same."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.nii").write_bytes(volume())
    (tmp_path / "labels" / "final").mkdir(parents=True)
    (tmp_path / "labels" / "final" / "b.nii").write_bytes(volume((VOXELS > 50).astype(np.uint8)))
    (tmp_path / "datastore_v2.json").write_bytes(content)
    store = opened(tmp_path)
    assert store.list_images() == ["a", "b"] and store.get_labeled_images() == ["b"] and store.not_served() == []
    [kept] = tmp_path.glob("datastore_v2.damaged-*.json")
    assert kept.read_bytes() == content
    assert "datastore_v2.json cannot be read" in caplog.text and kept.name in caplog.text
    assert opened(tmp_path).list_images() == ["a", "b"]
    assert list(tmp_path.glob("datastore_v2.damaged-*.json")) == [kept]


@pytest.mark.parametrize(
    ("image", "label", "reason"),
    [
        ("M\u00fcller", "Mu\u0308ller", "encodes its accents in another way, as macOS does"),
        ("cafe\u0301", "caf\u00e9", "encodes its accents in another way, as macOS does"),
        ("Scan", "scan", "differs in letter case"),
        ("\u00c9t\u00e9", "e\u0301te\u0301", "differs in letter case"),
    ],
)
def test_a_label_whose_name_only_looks_like_that_of_its_image(
    tmp_path: Path, image: str, label: str, reason: str
) -> None:
    (tmp_path / f"{image}.nii").write_bytes(volume())
    labels = tmp_path / "labels" / "final"
    labels.mkdir(parents=True)
    for name in (label, "nobody"):
        (labels / f"{name}.nii").write_bytes(volume((VOXELS > 50).astype(np.uint8)))
    reasons = {entry.name: entry.reason for entry in opened(tmp_path).not_served()}
    start = "is a label without an image: "
    assert reasons == {
        f"labels/final/{label}.nii": f"{start}the name of the image {image} {reason}; rename one of them",
        "labels/final/nobody.nii": f"{start}there is none of the name nobody",
    }
    (labels / f"{label}.nii").rename(labels / f"{image}.nii")
    assert opened(tmp_path).get_labeled_images() == [image]


def test_a_label_that_grows_is_not_given_out_before_it_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    now, stamps = [0.0], {"grows": 1, "whole": 1}
    monkeypatch.setattr("lib.label_arrivals.time", SimpleNamespace(monotonic=lambda: now[0]))
    arrivals = LabelArrivals(stamps.get)
    for image in ("grows", "whole", "gone"):
        arrivals.add(image)
    arrivals.add("later", delay=5.0)
    given = []
    for _ in range(16):
        given.append(sorted(arrivals.quiet()))
        now[0] += 0.5
        if now[0] <= 3:
            stamps["grows"] += 1  # the system does not tell of every change
    moments = {image: number / 2 for number, images in enumerate(given) for image in images}
    assert moments == {"gone": 1.0, "whole": 1.0, "grows": 4.0, "later": 6.0}
    assert sum(map(len, given)) == 4


def test_a_listener_that_fails_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lib.folder_store.RETRY_SECONDS", 0.1)
    (tmp_path / "a.nii").write_bytes(volume())
    store = opened(tmp_path, auto_reload=True)
    heard: list[str] = []

    def fail_once(image: str, label: str) -> None:
        heard.append(image)
        if len(heard) == 1:
            raise OSError(28, "no space left on device")

    store.on_label, store.on_removed = fail_once, heard.append
    (tmp_path / "labels" / "final" / "a.nii").write_bytes(volume((VOXELS > 50).astype(np.uint8)))
    assert eventually(lambda: heard == ["a", "a"])


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ([], "Found: no file. Expected: files of type .nii.gz, .nii, .nrrd,"),
        (["a.pdf", "b"], "Found: 1 file of type .pdf, 1 file of type none. Expected"),
        (
            ["p/1.nii.gz", "q/r/2.png"],
            "Found: no file (p is a sub-folder with images (in p); move them into the folder",
        ),
    ],
)
def test_a_folder_with_nothing_to_serve_says_what_was_found(tmp_path: Path, files: list[str], found: str) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(b"content")
    assert found in str(opened(tmp_path).nothing_to_serve())


def test_notes_beside_images_are_nothing_to_tell_of(tmp_path: Path) -> None:
    for name in ("README.txt", "a.json", "participants.tsv", ".DS_Store", "Thumbs.db", "a.bval", "LICENSE"):
        (tmp_path / name).write_text(json.dumps({}))
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "a.nii").write_bytes(volume())
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "plan.docx").write_bytes(b"text")
    assert opened(tmp_path).not_served() == []
    for number in range(5):
        (tmp_path / f"s{number}.xyz").write_bytes(b"voxels")
    assert [entry.name for entry in opened(tmp_path).not_served()] == ["s0.xyz and 4 more"]
