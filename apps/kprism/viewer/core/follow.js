// SPDX-License-Identifier: Apache-2.0
// Following a structure through the volume, from the slices on which it was drawn by whatever means. Slices that it was
// followed to, and that nobody has touched since, are found anew the next time.
import { IMAGES, imagesOf, indexAcross, pixelsOf, volumeOf } from './cuts.js';
import { asItComes } from './coming.js';
import { answered, maskOf, merged, same } from './edits.js';
import { BEFORE } from './strokes.js';

const VOLUME = 'whole volume';

/** How far to follow: what the user reads, and the server's options. */
export const REACHES = {
  'all slices': { scope: VOLUME },
  '10 each way': { scope: 'slices around', slices_around: 10 },
  '5 each way': { scope: 'slices around', slices_around: 5 },
  '2 each way': { scope: 'slices around', slices_around: 2 },
};

/** Scroll to the slice where the structure that was followed last is least certain, if there is one. */
export function showNextSlice({ scene, case: open, nextSlice }) {
  if (nextSlice) {
    scene.show(open.frames[nextSlice.k]);
  }
}

export class Following {
  #found = new Map(); // structure -> Map of slice number to the mask that was found

  clear() {
    this.#found.clear();
  }

  /**
   * Ask the server to follow a structure; the planes of the label map that this changes, as they become, the `count` of
   * slices that it was found on, and the `nextSlice` to look at: null if all are certain, or in another plane.
   */
  async run(session, labelmap, structure, segment) {
    const { case: open, reach, protect, clientId, prompts, scene } = session;
    const cuts = prompts.cuts(structure);
    const others = cuts.filter(({ axis }) => axis !== IMAGES);
    if (others.length && new Set(cuts.map(({ axis }) => axis)).size === 1) {
      return followAcross(others, session, labelmap, structure, segment);
    }
    const volume = volumeOf(open, scene.inView(open.frames));
    const isElsewhere = (k, mask) => (volume && !volume.has(k)) || isOn(others, mask, open.grid[0]);
    const drawn = this.#drawn(labelmap, structure, segment, isElsewhere);
    if (!drawn.size) {
      throw new Error(`Draw ${structure} on a slice first; it is followed from there.`);
    }
    const params = { ...REACHES[reach], structure, follow_mask: true, client_id: clientId };
    const valuesOf = names => new Map([[names[structure] ?? 1, segment]]);
    const drawing = names => (plane, part) => merged(plane, part, valuesOf(names), protect);
    const asked = { model: 'interactive', id: open.id, params, planes: drawn };
    const { result, planes } = await asItComes(session, labelmap, asked, drawing);
    const values = valuesOf(result.label_names);
    const anew = params.scope === VOLUME ? volume : new Set(result.slices[structure].followed);
    const after = answered(labelmap, planes, values, protect, { anew });
    const found = [...after].filter(([k]) => !drawn.has(k)).map(([k, plane]) => [k, maskOf(plane, segment)]);
    this.#found.set(structure, new Map([...(this.#found.get(structure) ?? []), ...found]));
    const count = found.filter(([, mask]) => mask.some(Boolean)).length;
    const k = result.next_slice[structure];
    return { after, count, nextSlice: k === null ? null : { structure, k } };
  }

  /**
   * The slices on which the structure was drawn and not found: Map of slice number to its mask, for the server. Those
   * where it `isElsewhere`, in another volume or view, do not count.
   */
  #drawn(labelmap, structure, segment, isElsewhere) {
    const found = this.#found.get(structure) ?? new Map();
    const masks = labelmap.slices.map(k => [k, maskOf(labelmap.plane(k), segment)]);
    const isFound = (k, mask) => found.has(k) && same(mask, found.get(k));
    const drawn = masks.filter(([k, mask]) => mask.some(Boolean) && !isFound(k, mask) && !isElsewhere(k, mask));
    return new Map(drawn.map(([k, mask]) => [k, mask.map(value => value * BEFORE)]));
  }
}

/** Whether a mask of an image lies on cuts across other axes alone: a line of pixels for each. */
function isOn(cuts, mask, columns) {
  const on = at => cuts.some(({ axis, index }) => indexAcross(axis, at, columns) === index);
  return cuts.length > 0 && mask.every((value, at) => !value || on(at));
}

/** Follow a structure that was pointed at in views across another axis, and in no others, from there in their plane. */
async function followAcross(cuts, session, labelmap, structure, segment) {
  const { case: open, reach, protect, clientId } = session;
  const { grid, planes: names } = open;
  const [{ axis }] = cuts;
  const empty = new Uint8Array(grid[0] * grid[1]);
  const drawn = new Map();
  for (const cut of cuts) {
    const mask = maskOf(
      pixelsOf(cut, grid, k => labelmap.plane(k)),
      segment,
    ).map(value => value * BEFORE);
    imagesOf(cut, grid, mask, k => drawn.get(k) ?? empty).forEach((image, k) => drawn.set(k, image));
  }
  if (!drawn.size) {
    throw new Error(`Draw ${structure} on a slice first; it is followed from there.`);
  }
  const params = { ...REACHES[reach], plane: names[axis], structure, follow_mask: true, client_id: clientId };
  const valuesOf = names => new Map([[names[structure] ?? 1, segment]]);
  // the cuts come one by one, each a line of every image: nothing is taken out of these
  const drawing = names => (plane, part) => merged(plane, part, valuesOf(names), protect, new Set());
  const asked = { model: 'interactive', id: open.id, params, planes: drawn };
  const { result, planes } = await asItComes(session, labelmap, asked, drawing);
  const values = valuesOf(result.label_names);
  const after = answered(labelmap, planes, values, protect);
  const { prompted, followed } = result.slices[structure];
  if (params.scope !== VOLUME) {
    const looked = new Set([...prompted, ...followed]);
    for (const [k, plane] of after) {
      const before = labelmap.plane(k);
      const kept = (value, at) => (looked.has(indexAcross(axis, at, grid[0])) ? value : before[at]);
      after.set(k, plane.map(kept));
    }
  }
  return { after, count: followed.length, nextSlice: null };
}
