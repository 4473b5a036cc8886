// SPDX-License-Identifier: Apache-2.0
// What the user has pointed at, by structure and slice. A round begins with the first click or stroke on a slice and
// ends when its mask is changed by other means (brush, eraser, another model): the next click then starts from there.
import { maskOf, same } from './edits.js';
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
   * Add a mark `{ inside, points, box }` to a structure's round on slice k of `plane`. One point is a click, several
   * are a stroke, or with `box` two corners.
   */
  add(structure, segment, k, plane, mark) {
    const key = `${k} ${structure}`;
    const mask = maskOf(plane, segment);
    let round = this.#rounds.get(key);
    if (!round || (round.expected && !same(mask, round.expected))) {
      round = { structure, k, before: mask, expected: null, marks: [] };
    }
    round = { ...round, marks: [...round.marks, mark] };
    this.#rounds.set(key, round);
    return round;
  }

  /** Note the mask that a round led to. */
  answered(round, mask) {
    const key = `${round.k} ${round.structure}`;
    if (this.#rounds.get(key) === round) {
      this.#rounds.set(key, { ...round, expected: mask });
    }
  }

  /** Every mark of a structure: `{ k, inside, points, box }`. */
  marks(structure) {
    return [...this.#rounds.values()]
      .filter(round => round.structure === structure)
      .flatMap(round => round.marks.map(mark => ({ k: round.k, ...mark })));
  }
}

/** What a round asks of which model: `{ model, params, plane }`. */
export function requestOf(round, columns) {
  const plane = round.before.map(value => (value ? BEFORE : 0));
  if (round.marks.every(mark => mark.points.length === 1)) {
    const voxels = marks => marks.map(({ points: [[i, j]] }) => [Math.round(i), Math.round(j), round.k]);
    const clicks = inside => voxels(round.marks.filter(mark => mark.inside === inside));
    const params = { [round.structure]: clicks(true), background: clicks(false), click_order: voxels(round.marks) };
    return { model: 'interactive', params: { structure: round.structure, ...params }, plane };
  }
  for (const { points } of round.marks.filter(mark => mark.box)) {
    drawBox(plane, columns, points);
  }
  for (const { inside, points } of round.marks.filter(mark => !mark.box)) {
    drawStroke(plane, columns, points, STROKE_WIDTH, inside ? INSIDE : OUTSIDE);
  }
  return { model: 'scribbles', params: { structure: round.structure }, plane };
}
