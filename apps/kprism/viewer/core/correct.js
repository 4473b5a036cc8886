// SPDX-License-Identifier: Apache-2.0
// A correction: one mark more of a structure (a click, a stroke or a box), and what the server answers to it.
import { imagesOf, pixelsOf } from './cuts.js';
import { coveredBy, maskOf, merged } from './edits.js';
import { ask } from './prompts.js';

/**
 * Add a mark `{ inside, points, box }` to a structure on a cut of the `open` case, and ask the server. Returns the
 * `images` of the cut, as they become, and the names of the structures that the answer is `coveredBy`.
 */
export async function correct(session, open, labelmap, { structure, segment, cut, ...mark }) {
  const { prompts, clientId } = session;
  const current = () => pixelsOf(cut, open.grid, k => labelmap.plane(k));
  const round = prompts.add(structure, segment, cut, current(), mark);
  session.changed();
  const { result, pixels } = await ask(round, open, clientId);
  const values = new Map([[result.label_names[structure] ?? 1, segment]]);
  const after = merged(current(), pixels, values, session.protect); // as it is by now
  prompts.answered(round, maskOf(after, segment));
  const images = imagesOf(cut, open.grid, after, k => labelmap.plane(k));
  return { images, coveredBy: coveredBy(labelmap, pixels, after, segment) };
}
