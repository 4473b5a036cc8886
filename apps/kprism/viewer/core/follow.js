// SPDX-License-Identifier: Apache-2.0
// Following a structure through the volume, from the slices on which it was drawn by whatever means. Slices that it was
// followed to, and that nobody has touched since, are found anew the next time.
import { answered, maskOf, same } from './edits.js';
import { server } from './server.js';
import { BEFORE } from './strokes.js';

const VOLUME = 'whole volume';

/** How far to follow: what the user reads, and the server's options. */
export const REACHES = {
  'all slices': { scope: VOLUME },
  '10 each way': { scope: 'slices around', slices_around: 10 },
  '5 each way': { scope: 'slices around', slices_around: 5 },
  '2 each way': { scope: 'slices around', slices_around: 2 },
};

export class Following {
  #found = new Map(); // structure -> Map of slice number to the mask that was found

  clear() {
    this.#found.clear();
  }

  /** Ask the server to follow a structure; the planes of the label map that this changes, as they become. */
  async run({ case: open, reach, protect, clientId }, labelmap, structure, segment) {
    const drawn = this.#drawn(labelmap, structure, segment);
    if (!drawn.size) {
      throw new Error(`Draw ${structure} on a slice first; it is followed from there.`);
    }
    const params = { ...REACHES[reach], structure, follow_mask: true, client_id: clientId };
    const { result, planes } = await server.infer('interactive', open.id, params, drawn);
    const values = new Map([[result.label_names[structure] ?? 1, segment]]);
    const anew = params.scope === VOLUME ? null : new Set(result.slices[structure].followed);
    const after = answered(labelmap, planes, values, protect, { anew });
    const found = [...after].filter(([k]) => !drawn.has(k)).map(([k, plane]) => [k, maskOf(plane, segment)]);
    this.#found.set(structure, new Map([...(this.#found.get(structure) ?? []), ...found]));
    return { after, count: found.filter(([, mask]) => mask.some(Boolean)).length };
  }

  /** The slices on which the structure was drawn and not found: Map of slice number to its mask, for the server. */
  #drawn(labelmap, structure, segment) {
    const found = this.#found.get(structure) ?? new Map();
    const masks = labelmap.slices.map(k => [k, maskOf(labelmap.plane(k), segment)]);
    const drawn = masks.filter(([k, mask]) => mask.some(Boolean) && !(found.has(k) && same(mask, found.get(k))));
    return new Map(drawn.map(([k, mask]) => [k, mask.map(value => value * BEFORE)]));
  }
}
