// SPDX-License-Identifier: Apache-2.0
// How many images of a case the server has fetched from the store: asked for while there are more to come.
import { server } from './server.js';

const PAUSE = 1000;

/** The longest pause, in which nothing has changed for a while or nobody answers. */
const LONG_PAUSE = 16000;

/** Keep `session.arrival`, `{ arrived, total, failed }`, while images of a case come, until another one is awaited. */
export async function watchArrival(session, id) {
  const watch = (session.awaited = {});
  let known;
  let pause = PAUSE;
  while (session.awaited === watch) {
    if (!document.hidden) {
      const found = await ask(id, known);
      if (session.awaited !== watch || isOver(session, id, found)) {
        return;
      }
      pause = left(found) === left(known) ? Math.min(2 * pause, LONG_PAUSE) : PAUSE;
      known = found;
    }
    await new Promise(resolve => setTimeout(resolve, pause));
  }
}

/** Show what the server says, and whether nothing more comes: all that can be is there, or it has no such case. */
function isOver(session, id, found) {
  const more = found !== null && left(found) !== 0;
  session.arrival = (more && found) || null;
  session.changed();
  const opening = session.busy && session.case?.id !== id;
  if (more || (found && opening)) {
    return false;
  }
  if (found?.failed) {
    session.scene.notify(failedSentence(found), 'warning');
  }
  return true;
}

/** What the server says, as `known` before if it or the store is down, or null if it does not have the case. */
async function ask(id, known) {
  try {
    return await server.arrival(id);
  } catch (error) {
    return error.status >= 400 && error.status < 500 ? null : known;
  }
}

/** How many images are to come; undefined if nobody has answered yet. */
function left(found) {
  return found && found.total - found.arrived - (found.failed ?? 0);
}

function failedSentence({ failed, total }) {
  const images = total === 1 ? 'The image' : `${failed} of ${total} images`;
  return `${images} of this case could not be fetched from the store; what needs them asks for them again.`;
}
