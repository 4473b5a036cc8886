# SPDX-License-Identifier: Apache-2.0
"""The K-Prism mode of OHIF, driven with mouse and keyboard as users do, and looked at in the viewer's memory."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from playwright.sync_api import Page, TimeoutError

from lib.api.ohif.planes import unpack
from tests.e2e.viewer.site import Site

IDLE = "() => window.kprism?.case && !kprism.busy && kprism.scene.viewport()?.getImageData?.()"

LISTEN = """() => {
    window.asked = [];
    window.answered = [];
    const send = window.fetch;
    window.fetch = async (address, options) => {
        const params = options?.body instanceof FormData && options.body.get('params');
        if (!params) {
            return send(address, options);
        }
        window.asked.push(JSON.parse(params));
        const answer = await send(address, options);
        answer.clone().arrayBuffer().then(content => {
            const text = Array.from(new Uint8Array(content), byte => String.fromCharCode(byte)).join('');
            window.answered.push([answer.status, text]);
        }, () => {});  // cancelled
        return answer;
    };
    window.messages = [];
    const note = node => {
        if (node.matches?.('[data-sonner-toast]')) {
            window.messages.push(node.innerText);
        }
    };
    new MutationObserver(changes => changes.forEach(({ addedNodes }) => addedNodes.forEach(note)))
        .observe(document, { childList: true, subtree: true });
}"""
"""Notes what the mode asks the models and what they answer, which the browser does not tell of forms with files, and
the viewer's notifications."""

SPOT = """([column, row]) => {
    const viewport = kprism.scene.viewport();
    const world = cornerstone.utilities.imageToWorldCoords(viewport.getCurrentImageId(), [column + 0.5, row + 0.5]);
    const [x, y] = viewport.worldToCanvas(world);
    const box = viewport.element.getBoundingClientRect();
    return [box.left + x, box.top + y];
}"""
"""Where the viewer itself says that the middle of a pixel of the image is; nothing of the mode's own arithmetic."""

PLANES = """() => [...(kprism.labelmap?.exists ? kprism.labelmap.filled() : [])].map(([k, plane]) => {
    let text = '';
    for (let at = 0; at < plane.length; at += 8192) {
        text += String.fromCharCode(...plane.subarray(at, at + 8192));
    }
    return [k, btoa(text)];
})"""

PAINTING = """() => {
    window.painted = false;
    cornerstone.eventTarget.addEventListener(
        cornerstoneTools.Enums.Events.SEGMENTATION_DATA_MODIFIED, () => { window.painted = true; }, { once: true });
}"""
"""Notes that pixels of a segmentation have changed."""

GZIP = b"\x1f\x8b\x08"
"""The first bytes of a message; of an answer in parts, these are a length."""

Voxel = tuple[int, int, int]


def last_message(content: bytes) -> bytes:
    """The message of an answer; of one that came in parts, the last."""
    while not content.startswith(GZIP):
        length = int.from_bytes(content[:4], "little")
        frame, content = content[4 : 4 + length], content[4 + length :]
        if not content:
            return frame
    return content


class Mode:
    """The mode in one page of the browser. Arrays of labels are (column, row, slice) in the server's order."""

    def __init__(self, page: Page, site: Site, pictures: Path) -> None:
        self.page, self.site, self._pictures = page, site, pictures
        page.add_init_script(f"({LISTEN})()")

    def open_from_list(self, patient: str) -> None:
        """Choose a study in the study list, then the mode."""
        self.page.goto(f"{self.site.url}/viewer/")
        self.choose_from_list(patient)

    def choose_from_list(self, patient: str) -> None:
        """The same from the study list that is shown."""
        self.page.get_by_role("cell", name=patient, exact=True).or_(self.page.get_by_text(patient)).first.click()
        self.shot("study-list")
        self.page.get_by_role("button", name="K-Prism").first.click()
        self.ready()

    def open(self, patient: str) -> None:
        """Open a study in the mode by its address."""
        study, _ = self.site.series(patient)
        self.page.goto(f"{self.site.url}/viewer/kprism?StudyInstanceUIDs={study}")
        self.ready()

    @property
    def case_id(self) -> str:
        """The case that is open."""
        return str(self.page.evaluate("() => kprism.case.id"))

    def show_series(self, number: int) -> None:
        """Show another series of the study, the `number`-th in the list of thumbnails."""
        before = self.case_id
        self.page.locator("[data-cy='study-browser-thumbnail']").nth(number - 1).dblclick()
        self.page.wait_for_function("before => kprism.case?.id !== before && !kprism.busy", arg=before)
        self.ready()

    def ready(self) -> None:
        """Wait until the case is open and shown."""
        self.page.wait_for_function(IDLE)

    def idle(self) -> None:
        """Wait until the mode has done what it was told."""
        self.page.wait_for_function("() => !kprism.busy")

    def press(self, key: str) -> None:
        """Press a key and wait for what it starts."""
        self.page.keyboard.press(key)
        self.idle()

    def brush(self, key: str = "b") -> None:
        """Take OHIF's brush, or with "e" its eraser, in hand."""
        self.press(key)
        tool = {"b": "CircularBrush", "e": "CircularEraser"}[key]
        self.page.wait_for_function(
            """tool => tool ===
                cornerstoneTools.ToolGroupManager.getToolGroup('default').getActivePrimaryMouseButtonTool()""",
            arg=tool,
        )

    def button(self, name: str) -> None:
        """Press a button of the panel and wait for what it starts."""
        self.page.locator(".kprism-panel").get_by_role("button", name=name).click()
        self.idle()

    def take(self, structure: str) -> None:
        """Take a structure in hand."""
        self.page.locator(".kp-structure", has_text=structure).click()

    def name_structure(self, name: str) -> None:
        """Make a new structure."""
        field = self.page.get_by_label("Name of a new structure")
        field.fill(name)
        field.press("Enter")

    def keep_others(self, kept: bool) -> None:
        """Whether answers leave other structures as they are."""
        self.page.get_by_label("Keep other structures").set_checked(kept)

    def delete_structure(self, name: str) -> None:
        """Delete a structure as OHIF's own list of segments does."""
        self.page.evaluate(
            """name => kprism.scene.commands.run('deleteSegment', {
                segmentationId: kprism.labelmap.id, segmentIndex: kprism.labelmap.segments.get(name),
            })""",
            name,
        )

    def show(self, k: int) -> None:
        """Scroll to a slice."""
        self.page.evaluate("k => kprism.scene.show(kprism.case.frames[k])", k)
        self.page.wait_for_function(
            """k => kprism.scene.viewport().getCurrentImageId()
                .includes(`/instances/${kprism.case.frames[k][0]}/`)""",
            arg=k,
        )

    def spot(self, voxel: Voxel) -> tuple[float, float]:
        """Where on the page a voxel of the shown slice is, in whole pixels, as a mouse has them."""
        x, y = self.page.evaluate(SPOT, list(voxel[:2]))
        return round(x), round(y)

    def click(self, voxel: Voxel, *, shift: bool = False) -> None:
        """Click on a voxel of the shown slice with the tool in hand."""
        if shift:
            self.page.keyboard.down("Shift")
        self.page.mouse.click(*self.spot(voxel))
        if shift:
            self.page.keyboard.up("Shift")
        self.idle()

    def drag(self, voxels: Sequence[Voxel]) -> None:
        """Draw from voxel to voxel with the tool in hand."""
        self.page.mouse.move(*self.spot(voxels[0]))
        self.page.mouse.down()
        for voxel in voxels[1:]:
            self.page.mouse.move(*self.spot(voxel), steps=4)
        self.page.mouse.up()
        self.idle()

    def paint(self, voxels: Sequence[Voxel]) -> None:
        """Draw with OHIF's brush or eraser and wait for it: it holds back what may become a double click for 400 ms."""
        self.page.evaluate(PAINTING)
        self.drag(voxels)
        self.page.wait_for_function("() => window.painted")

    def asked(self) -> dict[str, Any]:
        """What a model was last asked for."""
        return dict(self.page.evaluate("() => window.asked.at(-1)"))

    def answer(self, action: Callable[[], None]) -> tuple[dict[str, Any], NDArray[np.uint8]]:
        """What a model answers to an action: its JSON and its labels."""
        before = self.page.evaluate("() => window.answered.length")
        action()
        try:
            self.page.wait_for_function("before => window.answered.length > before", arg=before)
        except TimeoutError as error:
            raise AssertionError(f"no model was asked; the viewer says: {self.messages()}") from error
        self.idle()
        status, content = self.page.evaluate("() => window.answered.at(-1)")
        assert status == 200, content
        header, labels = unpack(last_message(content.encode("latin-1")), self.grid)
        return header["result"], labels.volume()

    @property
    def grid(self) -> Voxel:
        """Columns, rows and slices of the case."""
        columns, rows, slices = self.page.evaluate("() => kprism.case.grid")
        return columns, rows, slices

    def labels(self) -> NDArray[np.uint8]:
        """What the viewer shows."""
        columns, rows, _ = self.grid
        shown = np.zeros(self.grid, np.uint8)
        for k, text in self.page.evaluate(PLANES):
            shown[:, :, k] = np.frombuffer(base64.b64decode(text), np.uint8).reshape(rows, columns).T
        return shown

    def masks(self) -> dict[str, NDArray[np.bool_]]:
        """What the viewer shows, by structure; only structures that are somewhere."""
        shown = self.labels()
        segments = dict(self.page.evaluate("() => [...kprism.labelmap.segments]"))
        return {name: shown == value for name, value in segments.items() if (shown == value).any()}

    def mask(self, structure: str) -> NDArray[np.bool_]:
        """What the viewer shows of one structure."""
        return self.masks().get(structure, np.zeros(self.grid, bool))

    def sentence(self) -> str:
        """What the status line says."""
        return self.page.locator(".kp-status").inner_text()

    def messages(self) -> list[str]:
        """What the viewer's notifications have said since the page was opened."""
        return list(self.page.evaluate("() => window.messages"))

    def shot(self, name: str) -> None:
        """Keep a picture of the page."""
        self.page.screenshot(path=self._pictures / f"{name}.png")
