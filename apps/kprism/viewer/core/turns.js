// SPDX-License-Identifier: Apache-2.0
// One thing at a time, and what users ask for meanwhile in its turn. The panel listens for "change".
export class Turns extends EventTarget {
  busy = null; // what is being done, in words
  problem = null; // why the last thing was not done
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
    this.problem = null;
    this.changed();
    try {
      return await task();
    } catch (error) {
      this.problem = error.message;
      this.failed(error);
      return undefined;
    } finally {
      this.busy = null;
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
    this.#waiting.delete(what);
    return this.work(what, task);
  }
}
