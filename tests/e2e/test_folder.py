# SPDX-License-Identifier: Apache-2.0
"""A folder as hospitals have them, served over HTTP: damaged and foreign files, odd names, labels that come and go.

What cannot be segmented is listed with its reason and never handed out; what others change counts within seconds.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import pytest
import requests
import SimpleITK
from PIL import Image
from playwright.sync_api import Page

from benchmarks.live_server import LiveServer
from tests.e2e.site import PLACE, SHAPE, as_file, block, get, submit, wait
from tests.tiny_network import copy_weights
from tests.unit.seg_nrrd_files import write_seg_nrrd

CJK = "肝臓" * 37 + "肝"  # 75 letters, 225 bytes
LONG = "n" * 215
LABELS = {"labels": {"1": "cyst"}}


def volume(seed: int = 0) -> nibabel.Nifti1Image:
    rng = np.random.default_rng(seed)
    return nibabel.Nifti1Image((rng.normal(100, 5, SHAPE) + 50 * block(30, 30)).astype(np.float32), PLACE)


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (48, 40)).astype(np.uint8))


def damaged(folder: Path) -> dict[str, str]:
    """Writes files that cannot be segmented; returns name -> what the reason says."""
    whole = gzip.compress(volume().to_bytes())
    (folder / "._a.nii.gz").write_bytes(struct.pack(">II16s", 0x00051607, 0x00020000, b"Mac OS X        ") + bytes(180))
    (folder / "truncated.nii.gz").write_bytes(whole[: len(whole) // 2])
    (folder / "truncated.nii").write_bytes(volume().to_bytes()[:-100])
    (folder / "empty.nii.gz").write_bytes(b"")
    (folder / "page.html.nii.gz").write_bytes(b"<html>404: file not found</html>")
    picture().save(folder / "cut.png")
    cut = (folder / "cut.png").read_bytes()
    (folder / "cut.png").write_bytes(cut[: len(cut) // 2])
    not_numbers = np.asarray(volume().dataobj).copy()
    not_numbers[:4] = np.nan
    nibabel.save(nibabel.Nifti1Image(not_numbers, PLACE), folder / "nan.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.full(SHAPE, np.nan, np.float32), PLACE), folder / "all_nan.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.full(SHAPE, 7, np.int16), PLACE), folder / "constant.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6, 7), np.int16), PLACE), folder / "time.nii.gz")
    picture().save(folder / "pages.tif", save_all=True, append_images=[picture(1)])
    (folder / "dangling.nii.gz").symlink_to(folder / "nowhere.nii.gz")
    (folder / "loop.nii.gz").symlink_to("loop.nii.gz")
    (folder / "directory.nii.gz").mkdir()
    os.mkfifo(folder / "pipe.nii.gz")
    (folder / "scan.xyz").write_bytes(b"voxels")
    (folder / os.fsdecode(b"M\xfcller.nii.gz")).write_bytes(whole)
    (folder / "a\nb.nii.gz").write_bytes(whole)
    (folder / "patient 1").mkdir()
    volume().to_filename(folder / "patient 1" / "inner.nii.gz")
    picture().save(folder / "double.png")
    return {
        "._a.nii.gz": "macOS",
        "truncated.nii.gz": "is not a readable .nii.gz file",
        "truncated.nii": "has the same name as truncated.nii.gz",
        "empty.nii.gz": "is an empty file",
        "page.html.nii.gz": "is not a readable .nii.gz file",
        "cut.png": "is not a readable .png file",
        "nan.nii.gz": "not finite numbers",
        "all_nan.nii.gz": "not finite numbers",
        "constant.nii.gz": "is constant: every voxel is 7",
        "time.nii.gz": "has 4 axes (4 x 5 x 6 x 7); expected 2 or 3",
        "pages.tif": "holds 2 pictures; expected one",
        "dangling.nii.gz": "is a link to",
        "loop.nii.gz": "cannot be looked at: Too many levels of symbolic links",
        "directory.nii.gz": "is a folder",
        "pipe.nii.gz": "it is a pipe",
        "scan.xyz": "is of type .xyz; expected one of .nii.gz, ",
        "M\N{REPLACEMENT CHARACTER}ller.nii.gz": "a name that is not UTF-8",
        "a\N{REPLACEMENT CHARACTER}b.nii.gz": "control character",
        "patient 1": "is a sub-folder with images",
        "double.png": "has the same name as double.nii.gz, which comes first",
    }


GOOD = {"double", "up", "Mixed", "scan.nii.gz.fixed", "photo", CJK, LONG, "50% #1 'x'"}


def good(folder: Path) -> None:
    """Writes files that can be segmented, with unusual names."""
    content = gzip.compress(volume().to_bytes())
    for name in ("double.nii.gz", "up.NII.GZ", "Mixed.Nii.gz", "scan.nii.gz.fixed.nii.gz", "50% #1 'x'.nii.gz"):
        (folder / name).write_bytes(content)
    for name in (f"{CJK}.nii.gz", f"{LONG}.nii.gz"):
        (folder / name).write_bytes(content)
    picture().save(folder / "photo.JPEG")


class Folder:
    """The studies, and the server on them."""

    def __init__(self, path: Path, server: LiveServer) -> None:
        self.path, self.server = path, server
        self.labels = path / "labels" / "final"

    def status(self) -> dict[str, Any]:
        return dict(get(self.server, "/kprism/api/status"))

    def not_served(self) -> dict[str, str]:
        return {entry["name"]: entry["reason"] for entry in self.status()["not_served"]}

    def next(self, strategy: str = "random") -> str:
        answer = requests.post(f"{self.server.url}/activelearning/{strategy}", json={}, timeout=60)
        assert answer.status_code == 200, answer.text
        return str(answer.json().get("id", ""))

    def infer(self, image: str) -> requests.Response:
        params = {"image": image, "output": "json"}
        return requests.post(f"{self.server.url}/infer/semantic", params=params, data={"params": "{}"}, timeout=60)

    def until(self, condition: Callable[[], Any]) -> Any:
        return wait(condition, self.server)

    def submitted(self) -> set[str]:
        """Images whose labels count: they are references and training data."""
        return {path.stem for path in (self.path / ".kprism" / "intake" / "cases").glob("*.json")}


@contextmanager
def serving(path: Path, fill: Callable[[Path], object]) -> Iterator[Folder]:
    """A server on a new folder, which `fill` fills before."""
    (path / "labels" / "final").mkdir(parents=True)
    (path / "labels.json").write_text(json.dumps(LABELS))
    fill(path)
    weights = copy_weights(path.parent / "weights")
    with LiveServer(path, conf={"model_path": str(weights), "train_after": "0"}) as server:
        yield Folder(path, server)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Folder]:
    def fill(path: Path) -> None:
        good(path)
        damaged(path)

    root = tmp_path_factory.mktemp("folder")
    with serving(root / "mixed [2024] 100% #1 ‘研究’.", fill) as folder:
        yield folder


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Folder]]:
    """Starts a server on a new folder."""
    with ExitStack() as stack:
        yield lambda name, fill: stack.enter_context(serving(tmp_path / name, fill))


def test_what_cannot_be_segmented_is_listed_and_never_handed_out(mixed: Folder, tmp_path: Path) -> None:
    wanted = damaged(tmp_path)
    drawn = {mixed.next() for _ in range(60)}
    assert drawn == GOOD, mixed.not_served()
    assert mixed.next("first") == min(GOOD)
    mixed.until(lambda: set(mixed.infer("constant").json()) == {"detail"})  # what fails when it is opened is listed too
    found = mixed.not_served()
    assert set(found) == set(wanted)
    for name, reason in wanted.items():
        assert reason in found[name], name
    assert mixed.status()["not_served_count"] == len(wanted)
    assert mixed.status()["nothing_to_serve"] is None
    cases = mixed.status()["cases"]
    assert cases["all"] == len(GOOD) and {entry["id"] for entry in cases["waiting"]} == GOOD
    datastore = get(mixed.server, "/datastore/")
    assert (datastore["total"], datastore["completed"], datastore["not_served"]) == (len(GOOD), 0, len(wanted))
    assert "Not served: scan.xyz is of type .xyz" in mixed.server.log()
    assert "Image 'empty' is not served: it is an empty file" in mixed.server.log()


@pytest.mark.parametrize("image", sorted(GOOD))
def test_images_with_unusual_names_are_segmented_labelled_and_found_again(mixed: Folder, image: str) -> None:
    answer = mixed.infer(image)
    assert answer.status_code == 200, answer.text
    file = requests.get(f"{mixed.server.url}/datastore/image", params={"image": image}, timeout=60)
    assert file.status_code == 200 and len(file.content) > 100
    if image == "photo":
        label = Image.fromarray(np.pad(np.ones((8, 8), np.uint8), ((4, 36), (4, 28))))
        label.save(mixed.server.scratch / "label.png")
        stored = submit(mixed.server, image, (mixed.server.scratch / "label.png").read_bytes(), suffix=".png")
    else:
        stored = submit(mixed.server, image, as_file(block(30, 30)))
    assert stored.status_code == 200, stored.text
    assert image in mixed.submitted()
    label = requests.get(f"{mixed.server.url}/datastore/label", params={"label": image, "tag": "final"}, timeout=60)
    if image != "photo":
        np.testing.assert_array_equal(
            nibabel.Nifti1Image.from_bytes(label.content).get_fdata().astype(np.uint8), block(30, 30)
        )


@pytest.mark.parametrize(
    "name", ["empty.nii.gz", "cut.png", "time.nii.gz", "dangling.nii.gz", "nan.nii.gz", "pages.tif"]
)
def test_what_is_mended_is_served_again(mixed: Folder, name: str) -> None:
    image = name.split(".")[0]
    if image == "nan":
        assert mixed.infer(image).status_code == 400
    mixed.until(lambda: name in mixed.not_served())
    fixed = mixed.path.parent / f"fixed-{name}"
    if name.endswith("gz"):
        volume(3).to_filename(fixed)
    else:
        picture(3).save(fixed)
    if image == "dangling":
        shutil.copy(fixed, mixed.path.parent / "target.nii.gz")
        (mixed.path / name).unlink()
        (mixed.path / name).symlink_to(mixed.path.parent / "target.nii.gz")
    elif image == "empty":
        fixed.replace(mixed.path / name)
    else:
        shutil.copy(fixed, mixed.path / name)
    mixed.until(lambda: name not in mixed.not_served() and image in {mixed.next() for _ in range(20)})
    assert mixed.infer(image).status_code == 200


def test_an_image_that_is_damaged_while_the_server_runs_is_not_handed_out(serve: Callable[..., Folder]) -> None:
    def fill(path: Path) -> None:
        for name in "abc":
            volume().to_filename(path / f"{name}.nii.gz")

    folder = serve("damaged later", fill)
    assert {folder.next() for _ in range(30)} == set("abc")
    content = (folder.path / "a.nii.gz").read_bytes()
    (folder.path / "a.nii.gz").write_bytes(content[:1000])
    (folder.path / "b.nii.gz").unlink()
    assert {folder.next() for _ in range(10)} <= {"b", "c"}
    folder.until(lambda: set(folder.not_served()) == {"a.nii.gz"} and folder.status()["cases"]["all"] == 1)
    gone = folder.infer("b")
    assert gone.status_code == 404 and gone.json()["detail"] == "image 'b' is not in this datastore"
    for address, named in {"image": {"image": "b"}, "label": {"label": "b", "tag": "final"}}.items():
        answer = requests.get(f"{folder.server.url}/datastore/{address}", params=named, timeout=60)
        assert answer.status_code == 404, answer.text
    with (folder.path / "d.nii.gz").open("wb") as copy:  # a copy that takes its time
        copy.write(content[:2000])
        copy.flush()
        folder.until(lambda: "d.nii.gz" in folder.not_served())
        assert {folder.next() for _ in range(10)} == {"c"}
        copy.write(content[2000:])
    folder.until(lambda: "d.nii.gz" not in folder.not_served())
    assert {folder.next() for _ in range(30)} == {"c", "d"}
    large = np.ones((300, 200, 50), np.float32)  # too large to be read before it is handed out
    large[7, 8, 9] = np.nan
    nibabel.save(nibabel.Nifti1Image(large, PLACE), folder.path / "e.nii")
    folder.until(lambda: folder.next() == "e")
    refused = folder.infer("e")
    assert refused.status_code == 400 and "has 1 voxels that are not finite numbers" in refused.json()["detail"]
    assert {folder.next() for _ in range(30)} == {"c", "d"}
    assert "the first at [7, 8, 9] (nan)" in folder.not_served()["e.nii"]


def test_the_status_page_shows_what_is_not_served(mixed: Folder, page: Page) -> None:
    mixed.infer("constant")
    page.goto(f"{mixed.server.url}/kprism/")
    title = page.get_by_role("heading", name="Not served")
    title.wait_for()
    shown = page.locator("#not-served li").all_inner_texts()
    assert shown == [f"{name} {reason}" for name, reason in mixed.not_served().items()]
    assert f"These {len(shown)} are in the studies, but cannot be segmented" in page.locator("main").inner_text()
    assert not page.locator("#nothing-to-serve").is_visible()


def test_labels_that_arrive_change_and_go_while_the_server_runs(serve: Callable[..., Folder]) -> None:
    def fill(path: Path) -> None:
        for name in "abcd":
            volume().to_filename(path / f"{name}.nii.gz")

    folder = serve("labels", fill)
    content = gzip.compress(as_file(block(30, 30)))
    (folder.labels / "a.nii.gz").write_bytes(content)  # copied
    moved = folder.path.parent / "moved.nii.gz"
    moved.write_bytes(content)
    moved.rename(folder.labels / "b.NII.GZ")
    (folder.labels / "nobody.nii.gz").write_bytes(content)
    with (folder.labels / "c.nii.gz").open("wb") as copy:
        copy.write(content[:300])
        copy.flush()
        folder.until(lambda: {"a", "b"} <= folder.submitted())
        copy.write(content[300:])
    folder.until(lambda: folder.submitted() == {"a", "b", "c"})
    folder.until(lambda: not folder.status()["cases"]["refused"])
    assert folder.next() == "d"
    assert folder.status()["cases"]["labelled"] == 3
    folder.until(lambda: "labels/final/nobody.nii.gz" in folder.not_served())

    def kept(image: str) -> np.ndarray:
        case = json.loads((folder.path / f".kprism/intake/cases/{image}.json").read_text())
        return np.asarray(nibabel.load(folder.path / ".kprism/intake" / case["label"]).dataobj)

    (folder.labels / "a.nii.gz").write_bytes(gzip.compress(as_file(block(20, 40))))  # replaced
    folder.until(lambda: np.array_equal(kept("a"), block(20, 40)))
    (folder.labels / "b.NII.GZ").unlink()
    folder.until(lambda: folder.submitted() == {"a", "c"} and folder.next() in ("b", "d"))
    (folder.path / "c.nii.gz").unlink()  # the image of a label
    folder.until(lambda: folder.submitted() == {"a"} and folder.status()["cases"]["all"] == 3)
    assert "is a label without an image" in folder.not_served()["labels/final/c.nii.gz"]
    volume().to_filename(folder.path / "c.nii.gz")
    folder.until(lambda: folder.submitted() == {"a", "c"})
    references = get(folder.server, "/kprism/api/references")
    assert {entry["id"] for entry in references} == {"a", "c"}


def test_a_label_of_two_files_counts_when_both_are_there(serve: Callable[..., Folder]) -> None:
    folder = serve("two files", lambda path: volume().to_filename(path / "\u809d.nii.gz"))
    label = SimpleITK.GetImageFromArray(np.ascontiguousarray(block(30, 30).T))
    label.SetDirection(np.diag([-1.0, -1, 1]).ravel().tolist())
    label.SetSpacing([1.0, 1, 4])
    SimpleITK.WriteImage(label, str(folder.path.parent / "\u809d.mhd"))
    shutil.copy(folder.path.parent / "\u809d.mhd", folder.labels)
    refused = folder.until(lambda: folder.status()["cases"]["refused"])
    assert "its voxels in '\u809d.raw', which is not beside it" in refused[0]["reason"]
    shutil.copy(folder.path.parent / "\u809d.raw", folder.labels)
    folder.until(lambda: folder.submitted() == {"\u809d"} and not folder.status()["cases"]["refused"])

    def kept() -> np.ndarray:
        case = json.loads((folder.path / ".kprism/intake/cases/\u809d.json").read_text())
        sent = SimpleITK.ReadImage(str(folder.path / ".kprism/intake" / case["raw"]))
        stored = np.asarray(nibabel.load(folder.path / ".kprism/intake" / case["label"]).dataobj)
        assert np.array_equal(SimpleITK.GetArrayFromImage(sent).T, stored)
        return stored

    assert np.array_equal(kept(), block(30, 30))
    answer = requests.get(f"{folder.server.url}/datastore/label", {"label": "\u809d", "tag": "final"}, timeout=60)
    (folder.server.scratch / "sent.mha").write_bytes(answer.content)
    assert "filename*=UTF-8''%E8%82%9D.mha" in answer.headers["Content-Disposition"]
    sent = SimpleITK.ReadImage(str(folder.server.scratch / "sent.mha"))
    assert np.array_equal(SimpleITK.GetArrayFromImage(sent).T, block(30, 30))
    for file in (folder.path / "\u809d.nii.gz", folder.labels / "\u809d.raw"):
        os.utime(file, (0, 0))  # as tools write that make the same archive every time; ZIP begins in 1980
    answer = requests.get(f"{folder.server.url}/datastore/dataset", timeout=60)
    assert answer.status_code == 200, answer.text
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        names = {"image/\u809d.nii.gz", "label/\u809d.mhd", "label/\u809d.raw", "metadata.json"}
        assert set(archive.namelist()) == names
        assert archive.read("label/\u809d.raw") == (folder.labels / "\u809d.raw").read_bytes()
    (folder.labels / "\u809d.raw").write_bytes(block(20, 40).tobytes(order="F"))
    folder.until(lambda: np.array_equal(kept(), block(20, 40)))


def test_a_seg_nrrd_belongs_to_its_image(serve: Callable[..., Folder]) -> None:
    def fill(path: Path) -> None:
        for name in ("x", "y", "y.seg"):
            volume().to_filename(path / f"{name}.nii.gz")

        write_seg_nrrd(path / "x.seg.nrrd", block(30, 30), PLACE, [("cyst", 1, 0)])  # where Slicer saves all it has
        write_seg_nrrd(path / "Segmentation.nrrd", block(30, 30), PLACE, [("cyst", 1, 0)])

    folder = serve("slicer's segmentations", fill)
    assert "is a segmentation by its name" in folder.not_served()["x.seg.nrrd"]
    segments = folder.until(lambda: folder.not_served().get("Segmentation.nrrd"))
    assert "is a segmentation: it names its segments, the first 'cyst'" in segments
    assert folder.status()["cases"]["all"] == 3
    place = {"space": "right-anterior-superior", "space directions": PLACE[:3, :3], "space origin": PLACE[:3, 3]}
    for name in ("x.seg.nrrd", "y.SEG.nrrd", "y.seg.nrrd"):
        nrrd.write(str(folder.labels / name), block(30, 30), place)
    folder.until(lambda: folder.submitted() == {"x", "y", "y.seg"})
    label = requests.get(f"{folder.server.url}/datastore/label", params={"label": "x", "tag": "final"}, timeout=60)
    assert label.content == (folder.labels / "x.seg.nrrd").read_bytes()
    volume().to_filename(folder.labels / "x.nii.gz")
    reason = folder.until(lambda: folder.not_served().get("labels/final/x.nii.gz"))
    assert reason == "is not used: the image has the label x.seg.nrrd already; remove one of them"


def test_a_folder_with_nothing_to_serve_says_so(serve: Callable[..., Folder]) -> None:
    def fill(path: Path) -> None:
        for name in ("a.xyz", "b.xyz", "c.doc", "notes.txt"):
            (path / name).write_bytes(b"content")

    folder = serve("nothing", fill)
    sentence = folder.status()["nothing_to_serve"]
    assert sentence.startswith(
        f"There is nothing to serve: the folder {folder.path} holds no image that can be segmented. "
        "Found: 1 file of type .doc, 2 files of type .xyz. Expected: files of type .nii.gz, .nii, .nrrd,"
    )
    assert sentence in folder.server.log()
    assert folder.next() == ""
    volume().to_filename(folder.path / "new.nii.gz")
    folder.until(lambda: folder.status()["nothing_to_serve"] is None and folder.next() == "new")


def test_an_upload_that_cannot_be_segmented_changes_nothing(serve: Callable[..., Folder]) -> None:
    folder = serve("uploads", lambda path: volume().to_filename(path / "a.nii.gz"))
    before = (folder.path / "a.nii.gz").read_bytes()
    write_seg_nrrd(folder.path.parent / "segments.nrrd", block(30, 30), PLACE, [("cyst", 1, 0)])
    whole = volume(1).to_bytes()

    def upload(name: str, content: bytes, image: str = "") -> requests.Response:
        address = f"{folder.server.url}/datastore/image"
        return requests.put(address, params={"image": image}, files={"file": (name, content)}, timeout=60)

    for name, content, reason in (
        ("a.nii.gz", b"", "image 'a' is an empty file"),
        ("cut.nii", whole[:-50], "image 'cut' is not a readable .nii file"),
        ("notes.txt", b"text", "image 'notes' is of type '.txt'"),
        ("two.mhd", b"NDims = 3\nElementDataFile = two.raw\n", "which is not beside it; an .mha file holds its own"),
        ("s.nrrd", (folder.path.parent / "segments.nrrd").read_bytes(), "image 's' is a segmentation"),
        ("a.nii", whole, "image 'a' is there already, as a.nii.gz; expected another name for a file of type .nii"),
    ):
        answer = upload(name, content)
        assert (answer.status_code, reason in answer.json()["detail"]) == (400, True), answer.text
    assert (folder.path / "a.nii.gz").read_bytes() == before
    assert folder.status()["cases"]["all"] == 1 and folder.not_served() == {}
    assert {path.name for path in folder.path.iterdir() if path.is_file() and not path.name.startswith(".")} == {
        *("a.nii.gz", "labels.json", "datastore_v2.json")
    }
    submit(folder.server, "a", as_file(block(30, 30)), "tumour")
    assert upload("any name.nii.gz", gzip.compress(whole), image="a").json() == {"image": "a"}
    assert (folder.path / "a.nii.gz").read_bytes() == gzip.compress(whole)
    label = get(folder.server, "/datastore/label/info", label="a", tag="final")  # the names of its values stay
    assert label["label_info"] == [{"name": "tumour", "idx": 3}]
