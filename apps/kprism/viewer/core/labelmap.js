// SPDX-License-Identifier: Apache-2.0
// The label map in the viewer: one segmentation per case, its planes by the server's slice numbers, every programmatic
// change one step of the viewer's own history (Ctrl+Z).
import { difference, standing } from './edits.js';
import { frameKey } from './scene.js';

const LABELMAP = 'Labelmap';
const UNRECORDED = { skipRecordingHistory: true };

export class LabelmapOfCase {
  #scene;
  #planes; // slice number -> image id of the label map
  preview = null; // what is shown of an answer that is still coming
  passing = false; // whether the pixels that change just now are those of a preview

  constructor(scene, segmentationId, frames) {
    this.#scene = scene;
    this.id = segmentationId;
    const rows = new Map(frames.map(([instance, number], k) => [`${instance} ${number}`, k]));
    const { imageIds, referencedImageIds } = this.#data();
    this.#planes = new Map(referencedImageIds.map((image, at) => [rows.get(frameKey(image)), imageIds[at]]));
    this.#planes.delete(undefined); // images that the server has set aside: nothing is drawn on them, none moves
    if (this.#planes.size !== frames.length) {
      throw new Error('The viewer shows other images of this series than the server has. Reload the page.');
    }
  }

  /** Make a segmentation for what the viewport in use shows. */
  static async create(scene, frames) {
    const id = await scene.commands.run('createLabelmapForViewport', { viewportId: scene.viewportId });
    const service = scene.services.segmentationService;
    for (const segment of Object.keys(service.getSegmentation(id).segments)) {
      service.removeSegment(id, Number(segment), UNRECORDED);
    }
    return new LabelmapOfCase(scene, id, frames);
  }

  get exists() {
    return Boolean(this.#service.getSegmentation(this.id));
  }

  get #service() {
    return this.#scene.services.segmentationService;
  }

  #data() {
    return window.cornerstoneTools.segmentation.state.getSegmentation(this.id).representationData[LABELMAP];
  }

  /** Structures: name -> segment. */
  get segments() {
    const segments = Object.values(this.#service.getSegmentation(this.id)?.segments ?? {});
    return new Map(segments.map(({ label, segmentIndex }) => [label, segmentIndex]));
  }

  /** The segment of a structure, made if it is new. */
  segmentOf({ name, colour }) {
    const known = this.segments.get(name);
    if (known) {
      return known;
    }
    const segmentIndex = 1 + Math.max(0, ...this.segments.values());
    this.#service.addSegment(this.id, { segmentIndex, label: name, color: [...colour, 255], active: true });
    for (const { id } of this.#scene.viewports) {
      if (this.#service.getSegmentationRepresentations(id, { segmentationId: this.id }).length) {
        this.#service.setSegmentColor(id, this.id, segmentIndex, [...colour, 255]);
      }
    }
    return segmentIndex;
  }

  /** The segment that the brush draws. */
  get active() {
    return window.cornerstoneTools.segmentation.segmentIndex.getActiveSegmentIndex(this.id);
  }

  /** Make a structure's segment the one that the brush draws. */
  activate(segment) {
    this.#service.setActiveSegment(this.id, segment);
  }

  /** A copy of the pixels of slice k. */
  plane(k) {
    return Uint8Array.from(this.#pixels(k));
  }

  #pixels(k) {
    return this.#voxels(k).getScalarData();
  }

  #voxels(k) {
    return window.cornerstone.cache.getImage(this.#planes.get(k)).voxelManager;
  }

  get slices() {
    return [...this.#planes.keys()].sort((first, second) => first - second);
  }

  /** The slices that hold something, with their pixels. */
  filled() {
    const planes = this.slices.map(k => [k, this.#pixels(k)]).filter(([, pixels]) => pixels.some(Boolean));
    return new Map(planes.map(([k, pixels]) => [k, Uint8Array.from(pixels)]));
  }

  /** What is drawn: `planes` that hold something, and the segments in them by `names`. */
  content() {
    const planes = this.filled();
    const present = new Set([...planes.values()].flatMap(plane => [...new Set(plane)]));
    const names = Object.fromEntries([...this.segments].filter(([, segment]) => present.has(segment)));
    return { planes, names };
  }

  /** Replace planes (Map of k to pixels) as one step of the history; `also(undone)` restores what belongs to it. */
  change(planes, also = () => {}) {
    const edits = this.#edits(planes);
    this.#apply(edits, 'after');
    window.cornerstone.utilities.HistoryMemo.DefaultHistoryMemo.push({
      restoreMemo: undone => {
        if (this.exists) {
          this.preview?.hide(); // the step knows the pixels without it
          this.#apply(edits, undone ? 'before' : 'after');
          also(undone);
        }
      },
    });
  }

  /** Write planes without a step in the history, as when a case is opened. */
  load(planes) {
    this.#apply(this.#edits(planes), 'after');
  }

  /** Write planes for the time being: neither a step of the history nor work of the user's. Returns the edits. */
  lay(planes) {
    const edits = this.#edits(planes);
    edits.forEach((edit, k) => this.#write(k, edit, 'after'));
    this.#tell({ passing: true });
    return edits;
  }

  /** Take a list of such edits back, where nothing else has been drawn since. */
  lift(list) {
    for (const edits of [...list].reverse()) {
      for (const [k, edit] of edits) {
        this.#write(k, standing(edit, this.#pixels(k)), 'before');
      }
    }
    this.#tell({ passing: true });
  }

  /** Take the whole segmentation away. */
  remove() {
    this.#service.remove(this.id);
  }

  /** Remove structures that hold nothing, without a step of the history. */
  forget(names) {
    this.passing = true;
    for (const name of names) {
      this.#service.removeSegment(this.id, this.segments.get(name), UNRECORDED);
    }
    this.passing = false;
  }

  #edits(planes) {
    return new Map([...planes].map(([k, after]) => [k, difference(this.#pixels(k), after)]));
  }

  #apply(edits, side) {
    edits.forEach((edit, k) => this.#write(k, edit, side));
    this.#tell();
  }

  #write(k, edit, side) {
    const voxels = this.#voxels(k);
    edit.places.forEach((place, at) => {
      voxels.setAtIndex(place, edit[side][at]); // which notes how far it is drawn: OHIF clears a segment only there
    });
  }

  #tell({ passing = false } = {}) {
    this.passing = passing;
    window.cornerstoneTools.segmentation.triggerSegmentationEvents.triggerSegmentationDataModified(this.id);
    this.passing = false;
  }
}
