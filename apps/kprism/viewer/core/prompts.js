// SPDX-License-Identifier: Apache-2.0
// What the user has pointed at, by structure and slice (a cut, see `cuts`). A round begins with the first click or
// stroke on a slice and ends when its mask is changed by other means (brush, eraser, another model): the next click
// then starts from there.
import { IMAGES, cutKey, imagesOf, pixelsOf, toVoxel, widthOf } from './cuts.js';
import { maskOf, same } from './edits.js';
import { server } from './server.js';
import { BEFORE, INSIDE, OUTSIDE, drawBox, drawStroke } from './strokes.js';

const STROKE_WIDTH = 3;

export class Prompts {
  #rounds = new Map();

  /** All prompts, for undo; `restore` takes it back. */
  snapshot() {
    return new Map([...this.#rounds].map(([key, round]) => [key, { ...round, marks: [...round.marks] }]));
  }

  restore(snapshot) {
    this.#rounds = new Map(snapshot);
  }

  clear() {
    this.#rounds.clear();
  }

  /**
   * Add a mark `{ inside, points, box }` to a structure's round on a cut with these `pixels`. Points are [x, y] of the
   * cut: one is a click, several are a stroke, or with `box` two corners.
   */
  add(structure, segment, cut, pixels, mark) {
    const key = `${cutKey(cut)} ${structure}`;
    const mask = maskOf(pixels, segment);
    let round = this.#rounds.get(key);
    if (!round || (round.expected && !same(mask, round.expected))) {
      round = { structure, cut, before: mask, expected: null, marks: [] };
    }
    round = { ...round, marks: [...round.marks, mark] };
    this.#rounds.set(key, round);
    return round;
  }

  /** Note the mask that a round led to. */
  answered(round, mask) {
    const key = `${cutKey(round.cut)} ${round.structure}`;
    if (this.#rounds.get(key) === round) {
      this.#rounds.set(key, { ...round, expected: mask });
    }
  }

  #of(structure) {
    return [...this.#rounds.values()].filter(round => round.structure === structure);
  }

  /** Every mark of a structure: `{ cut, inside, points, box }`. */
  marks(structure) {
    return this.#of(structure).flatMap(({ cut, marks }) => marks.map(mark => ({ cut, ...mark })));
  }

  /** The cuts on which a structure was pointed at. */
  cuts(structure) {
    return this.#of(structure).map(({ cut }) => cut);
  }
}

/** Ask the server what a round asks for in a case: `{ result, pixels }`, the answer on the round's cut. */
export async function ask(round, open, clientId) {
  const { cut } = round;
  const { grid, id } = open;
  const { model, params, pixels } = requestOf(round, open);
  const empty = new Uint8Array(grid[0] * grid[1]);
  const drawn = imagesOf(cut, grid, pixels, () => empty);
  const { result, planes } = await server.infer(model, id, { ...params, client_id: clientId }, drawn);
  return { result, pixels: pixelsOf(cut, grid, k => planes.get(k)) };
}

/** What a round asks of which model: `{ model, params, pixels }`, the pixels of its cut. */
function requestOf(round, { grid, planes }) {
  const { cut } = round;
  const width = widthOf(cut, grid);
  const pixels = round.before.map(value => (value ? BEFORE : 0));
  const asked = { structure: round.structure, ...(cut.axis === IMAGES ? {} : { plane: planes[cut.axis] }) };
  if (round.marks.every(mark => mark.points.length === 1)) {
    const voxels = marks => marks.map(({ points: [point] }) => toVoxel(cut, point).map(Math.round));
    const clicks = inside => voxels(round.marks.filter(mark => mark.inside === inside));
    const params = { [round.structure]: clicks(true), background: clicks(false), click_order: voxels(round.marks) };
    return { model: 'interactive', params: { ...asked, ...params }, pixels };
  }
  for (const { points } of round.marks.filter(mark => mark.box)) {
    drawBox(pixels, width, points);
  }
  for (const { inside, points } of round.marks.filter(mark => !mark.box)) {
    drawStroke(pixels, width, points, STROKE_WIDTH, inside ? INSIDE : OUTSIDE);
  }
  return { model: 'scribbles', params: asked, pixels };
}
