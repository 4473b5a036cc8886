// SPDX-License-Identifier: Apache-2.0
// An answer about many slices, which may take a minute: what is known of it is shown while it comes, and the user can
// cancel it.
import { Preview } from './preview.js';
import { server } from './server.js';

/**
 * Ask a model as `server.infer` does, and show the parts of the answer in a label map (`drawing` as in `Preview`).
 * Resolves to the answer, and the label map is as it was before; so it is, too, if it fails or is cancelled.
 */
export async function asItComes(session, labelmap, { model, id, params, planes = null }, drawing) {
  const abort = new AbortController();
  const preview = new Preview(labelmap, drawing);
  session.cancelWith(() => {
    abort.abort();
    preview.end(); // at once: the label map may be about to be saved
  });
  const onPart = ({ done, total, names, planes: found }) => {
    preview.show(found, names);
    session.progressed(done, total);
  };
  try {
    const answer = await server.inferStream(model, id, params, planes, { onPart, signal: abort.signal });
    preview.end(true);
    return answer;
  } finally {
    preview.end();
    session.cancelWith(null);
  }
}
