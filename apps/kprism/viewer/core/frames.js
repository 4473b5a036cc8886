// SPDX-License-Identifier: Apache-2.0
// An answer that comes in frames (lib/api/ohif/streaming.py): four bytes, little-endian, of the length, and so many of
// a message (see planes.js), one after the other. The network cuts the bytes into chunks wherever it likes.
import { unpack } from './planes.js';

export const BROKEN_OFF =
  'The server stopped in the middle of its answer. Your work stays here; try again in a moment.';

/** The messages `{ header, planes }` that a reader brings, each as soon as it is whole; left early, the stream ends. */
export async function* messages(reader) {
  const bytes = new Bytes(reader);
  try {
    while (!(await bytes.ended())) {
      const length = new DataView((await bytes.take(4)).buffer).getUint32(0, true);
      yield await unpack(new Blob([await bytes.take(length)]));
    }
  } finally {
    reader.cancel().catch(() => {}); // it has failed already
  }
}

class Bytes {
  #reader;
  #chunks = [];
  #held = 0;

  constructor(reader) {
    this.#reader = reader;
  }

  /** Whether no more bytes come. */
  async ended() {
    return this.#held === 0 && !(await this.#more());
  }

  /** The next bytes, a copy; an error if there are not so many. */
  async take(count) {
    while (this.#held < count) {
      if (!(await this.#more())) {
        throw new Error(BROKEN_OFF);
      }
    }
    const taken = new Uint8Array(count);
    for (let at = 0; at < count; ) {
      const [chunk] = this.#chunks;
      const part = chunk.subarray(0, count - at);
      taken.set(part, at);
      at += part.length;
      this.#chunks.splice(0, 1, ...(part.length < chunk.length ? [chunk.subarray(part.length)] : []));
    }
    this.#held -= count;
    return taken;
  }

  /** Wait for another chunk that holds something; whether there was one. */
  async #more() {
    let read;
    do {
      read = await this.#reader.read().catch(brokenOff);
    } while (!read.done && !read.value.length);
    if (!read.done) {
      this.#chunks.push(read.value);
      this.#held += read.value.length;
    }
    return !read.done;
  }
}

function brokenOff(error) {
  throw error.name === 'AbortError' ? error : new Error(BROKEN_OFF);
}
