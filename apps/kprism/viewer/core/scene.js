// SPDX-License-Identifier: Apache-2.0
// What OHIF shows, in the server's terms: which case, which slice of it a viewport shows, and where in it a pointer is.
import { IMAGES } from './cuts.js';

const PANEL = 'kprism.panelModule.kprism';
const ALONG = 0.999; // cosine of the largest angle between a view's normal and an axis of the volume that it cuts
const FRAME = /\/instances\/([^/]+)\/frames\/(\d+)/;

/** (SOP instance, frame number) in an image's address, as one word. */
export function frameKey(imageId) {
  const [, instance, frame] = FRAME.exec(imageId) ?? [];
  return instance ? `${instance} ${Number(frame)}` : null;
}

export class Scene {
  constructor({ servicesManager, commandsManager }) {
    this.services = servicesManager.services;
    this.commands = commandsManager;
  }

  /** Identifier of the viewport in use. */
  get viewportId() {
    return this.services.viewportGridService.getState().activeViewportId;
  }

  /** The series shown in the viewport in use, if it holds images. */
  get displaySet() {
    const { viewportGridService, displaySetService } = this.services;
    const shown = viewportGridService.getDisplaySetsUIDsForViewport?.(this.viewportId) ?? [];
    const sets = shown.map(id => displaySetService.getDisplaySetByUID(id)).filter(Boolean);
    return sets.find(set => set.imageIds?.length || set.numImageFrames) ?? null;
  }

  /** Case id of what is shown: the series' identifier. */
  get caseId() {
    return this.displaySet?.SeriesInstanceUID ?? null;
  }

  /** Enabled viewports of cornerstone. */
  get viewports() {
    return window.cornerstone.getEnabledElements().map(({ viewport }) => viewport);
  }

  viewport(id = this.viewportId) {
    return this.viewports.find(viewport => viewport.id === id) ?? null;
  }

  /** Make a viewport the one in use. */
  use(viewport) {
    if (viewport.id !== this.viewportId) {
      this.services.viewportGridService.setActiveViewportId(viewport.id);
    }
  }

  /** The axis of the image's volume that a viewport looks along: `IMAGES` in their own plane and in oblique views. */
  axis(viewport) {
    const direction = viewport.getImageData?.()?.imageData.getDirection();
    if (viewport.type === 'stack' || !direction) {
      return IMAGES;
    }
    const { viewPlaneNormal } = viewport.getCamera();
    const cosine = axis => viewPlaneNormal.reduce((sum, value, at) => sum + value * direction[3 * axis + at], 0);
    return [0, 1].find(axis => Math.abs(cosine(axis)) > ALONG) ?? IMAGES;
  }

  /** `{ key, column, row }` of a point of a viewport's canvas, or null beside the image. */
  locate(viewport, canvasPoint) {
    const image = viewport.getImageData?.();
    if (!image) {
      return null;
    }
    const index = image.imageData.worldToIndex(viewport.canvasToWorld(canvasPoint));
    const [column, row, depth] = index.map(value => Math.round(value));
    const [columns, rows] = image.dimensions;
    if (column < 0 || row < 0 || column >= columns || row >= rows) {
      return null;
    }
    const imageId = viewport.type === 'stack' ? viewport.getCurrentImageId() : volumeImages(viewport)?.[depth];
    return imageId ? { key: frameKey(imageId), column: index[0], row: index[1] } : null;
  }

  /** Canvas point of [column, row] of the image named by `key`, or null where the viewport does not show it. */
  place(viewport, key, [column, row]) {
    const image = viewport.getImageData?.();
    if (!image) {
      return null;
    }
    if (viewport.type === 'stack') {
      const shown = frameKey(viewport.getCurrentImageId() ?? '') === key;
      return shown ? viewport.worldToCanvas(image.imageData.indexToWorld([column, row, 0])) : null;
    }
    const depth = (volumeImages(viewport) ?? []).findIndex(imageId => frameKey(imageId) === key);
    const world = depth < 0 ? null : image.imageData.indexToWorld([column, row, depth]);
    return world && inPlane(viewport, world) ? viewport.worldToCanvas(world) : null;
  }

  /** The number of the image of `frames` that the viewport in use shows; 0 if it shows none of them. */
  inView(frames) {
    const key = frameKey(this.viewport()?.getCurrentImageId?.() ?? '');
    return Math.max(
      0,
      frames.findIndex(frame => frame.join(' ') === key),
    );
  }

  /** Scroll the viewport in use to an image, `[instance, frame]`. */
  show(frame) {
    const imageIndex = this.#indexOf(frame);
    if (imageIndex >= 0) {
      window.cornerstone.utilities.jumpToSlice(this.viewport().element, { imageIndex });
    }
  }

  /** The number of an image, `[instance, frame]`, in the viewport in use, from 1 on; null if it does not hold it. */
  numberOf(frame) {
    const index = this.#indexOf(frame);
    return index < 0 ? null : index + 1;
  }

  #indexOf(frame) {
    return (this.viewport()?.getImageIds?.() ?? []).findIndex(id => frameKey(id) === frame?.join(' '));
  }

  /** The name of OHIF's tool at the main button of the mouse in a viewport. */
  toolIn(element) {
    const { viewportId, renderingEngineId } = window.cornerstone.getEnabledElement(element) ?? {};
    const group = window.cornerstoneTools.ToolGroupManager.getToolGroupForViewport(viewportId, renderingEngineId);
    return group?.getActivePrimaryMouseButtonTool() ?? '';
  }

  /** Call `changed` whenever pixels of a segmentation change, by whatever tool: brush, eraser, undo or this mode. */
  onPixels(segmentationId, changed) {
    const { SEGMENTATION_DATA_MODIFIED } = window.cornerstoneTools.Enums.Events;
    window.cornerstone.eventTarget.addEventListener(SEGMENTATION_DATA_MODIFIED, ({ detail }) => {
      if (detail.segmentationId === segmentationId) {
        changed();
      }
    });
  }

  /** Bring our panel to the front, also after what OHIF does next. */
  showPanel() {
    const show = () => this.services.panelService.activatePanel(PANEL, true);
    show();
    setTimeout(show, 300);
  }

  /**
   * Show a sentence in the viewer, away from our panel: it stays for as long as the pointer is on it. Not on the left:
   * OHIF makes it wider than its place there, so that its beginning would be cut off.
   */
  notify(message, type = 'info') {
    const position = 'bottom-center';
    this.services.uiNotificationService.show({ title: 'K-Prism', message, type, duration: 8000, position });
  }
}

function volumeImages(viewport) {
  return window.cornerstone.cache.getVolume(viewport.getVolumeId?.())?.imageIds;
}

function inPlane(viewport, world) {
  const { focalPoint, viewPlaneNormal } = viewport.getCamera();
  const distance = world.reduce((sum, value, axis) => sum + (value - focalPoint[axis]) * viewPlaneNormal[axis], 0);
  return Math.abs(distance) <= Math.min(...viewport.getImageData().spacing) / 2 + 0.01;
}
