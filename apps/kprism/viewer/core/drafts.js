// SPDX-License-Identifier: Apache-2.0
// What was drawn in cases that are not shown at the moment: nothing of it is lost when another series is looked at, or
// when the mode is left for the study list.
import { Following } from './follow.js';
import { Prompts } from './prompts.js';

/** All that is known of a case when it is opened; `found` is what the server tells of it, null if none is open. */
export function fresh(found) {
  return {
    case: found,
    labelmap: null,
    basedOn: null, // the version of the submitted label that was drawn on
    dirty: false, // drawn and not submitted
    conflict: false, // somebody else has submitted a label in between
    leaving: false, // told that it is not submitted
    prompts: new Prompts(),
    following: new Following(),
    chosen: new Set(), // references
    automatic: new Set(), // structures that no hand has touched: the next automatic answer may take them away
    nextSlice: null, // of the structure that was followed last, `{ structure, k }`: where it is least certain
    answer: null, // what the last answer says of itself, null if that was to a click or a structure to follow
  };
}

export class Drafts {
  #aside = new Map(); // case id -> its state, while the viewer holds its label map
  #saved = new Map(); // case id -> what was drawn in it, as a label of the server's

  /** Put the open case aside, until its series is shown again. */
  keep(session) {
    if (session.case) {
      const state = Object.keys(fresh(null)).map(name => [name, session[name]]);
      this.#aside.set(session.case.id, Object.fromEntries(state));
    }
  }

  /** The state of a case that was put aside, null if there is none. */
  aside(id) {
    return this.#aside.get(id) ?? null;
  }

  /** The same, to go on with it; null, too, if the viewer has taken its label map away. */
  take(id) {
    const state = this.aside(id);
    this.#aside.delete(id);
    return state?.labelmap?.exists ? state : null;
  }

  /** Save what is drawn and not submitted, before the viewer takes the label maps away. */
  save(session) {
    this.keep(session);
    for (const { case: drawn, labelmap, basedOn } of this.#unsubmitted()) {
      const { planes, names } = labelmap.content();
      this.#saved.set(drawn.id, { header: { names, version: basedOn }, planes });
    }
    this.#aside.clear();
  }

  /** What was saved of a case, to go on with it; null if nothing was. */
  saved(id) {
    const label = this.#saved.get(id) ?? null;
    this.#saved.delete(id);
    return label;
  }

  /** Whether anything is drawn and not submitted. */
  get any() {
    return this.#saved.size > 0 || this.#unsubmitted().length > 0;
  }

  /** Give all of it up. */
  clear() {
    this.#aside.clear();
    this.#saved.clear();
  }

  #unsubmitted() {
    return [...this.#aside.values()].filter(({ dirty, labelmap }) => dirty && labelmap?.exists);
  }
}
