// SPDX-License-Identifier: Apache-2.0
// One thing at a time, and what users ask for meanwhile in its turn. The panel listens for "change".
export class Turns extends EventTarget {
  busy = null; // what is being done, in words
  problem = null; // why the last thing was not done
  said = null; // a word about the last thing, where that is no problem
  progress = null; // of what is being done: `{ done, total }` slices, null if it does not tell
  #cancel = null; // ends what is being done
  #idle = Promise.resolve();
  #waiting = new Set();

  changed() {
    this.dispatchEvent(new Event('change'));
  }

  /** Do it now, or not at all while something else is being done. What goes wrong becomes a sentence. */
  async work(what, task) {
    if (this.busy) {
      return undefined;
    }
    let done;
    this.#idle = new Promise(resolve => {
      done = resolve;
    });
    this.busy = what;
    Object.assign(this, { problem: null, said: null });
    this.changed();
    try {
      return await task();
    } catch (error) {
      if (error.name === 'AbortError') {
        this.said = 'Cancelled; nothing was changed.';
      } else {
        this.problem = error.message;
        this.failed(error);
      }
      return undefined;
    } finally {
      Object.assign(this, { busy: null, progress: null });
      done();
      this.changed();
    }
  }

  /** Do it after what is being done. Asked for once more before it is done, it is done once, unless `each` counts. */
  async inTurn(what, task, { each = false } = {}) {
    if (!each && (this.busy === what || this.#waiting.has(what))) {
      return undefined;
    }
    this.#waiting.add(what);
    while (this.busy) {
      await this.#idle;
    }
    const wanted = this.#waiting.delete(what) || each;
    return wanted ? this.work(what, task) : undefined;
  }

  /** Let `cancel` end what is being done, with an AbortError; null from when on it cannot be cancelled. */
  cancelWith(cancel) {
    this.#cancel = cancel;
    this.changed();
  }

  get cancellable() {
    return this.#cancel !== null;
  }

  /**
   * Cancel what is being done, and what waits for it: to submit, say, is meant for what would have been drawn. Clicks
   * and strokes stand for themselves, and are done.
   */
  cancel() {
    const cancel = this.#cancel;
    if (cancel) {
      this.#cancel = null;
      this.#waiting.clear();
      cancel();
      this.changed();
    }
  }

  /** So many slices of what is being done are done, of `total`, which may be null. */
  progressed(done, total) {
    this.progress = { done, total };
    this.changed();
  }
}
