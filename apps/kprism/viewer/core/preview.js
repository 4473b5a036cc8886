// SPDX-License-Identifier: Apache-2.0
// What is known of an answer while the rest of it is computed, shown in the label map but no step of its history, and
// taken back before the answer itself is drawn, or when there will be none.
export class Preview {
  #labelmap;
  #drawing;
  #edits = []; // in the order in which they were made
  #shown = new Set(); // slices
  #made = []; // structures that were new
  #active; // the segment in hand before

  /** `drawing(names)` makes the function `(plane, part, again)` that merges a part, whose values have `names`. */
  constructor(labelmap, drawing) {
    this.#labelmap = labelmap;
    this.#drawing = drawing;
    this.#active = labelmap.active;
    labelmap.preview = this;
  }

  /** Show planes (Map of k to pixels), whose values have `names`. */
  show(planes, names) {
    if (!planes.size) {
      return;
    }
    const present = new Set([...planes.values()].flatMap(plane => [...new Set(plane)]));
    const found = Object.entries(names).filter(([, value]) => present.has(value));
    const known = this.#labelmap.segments;
    const draw = this.#drawing(Object.fromEntries(found));
    this.#made.push(...found.map(([name]) => name).filter(name => !known.has(name)));
    const after = [...planes].map(([k, part]) => [k, draw(this.#labelmap.plane(k), part, this.#shown.has(k))]);
    this.#edits.push(this.#labelmap.lay(new Map(after)));
    planes.forEach((_, k) => this.#shown.add(k));
  }

  /** Take back what is shown; where something else was drawn in the meantime, that stays. */
  hide() {
    this.#labelmap.lift(this.#edits.splice(0));
    this.#shown.clear();
  }

  /** The same for good; `kept` if the answer comes now, for which the new structures stay. */
  end(kept = false) {
    if (this.#labelmap.preview !== this) {
      return;
    }
    this.#labelmap.preview = null;
    if (this.#labelmap.exists) {
      this.hide();
    }
    if (this.#labelmap.exists && !kept && this.#made.length) {
      this.#labelmap.forget(this.#made);
      if ([...this.#labelmap.segments.values()].includes(this.#active)) {
        this.#labelmap.activate(this.#active);
      }
    }
  }
}
