// SPDX-License-Identifier: Apache-2.0
// How many images of a case the server has fetched from the store: asked for while there are more to come.
import { server } from './server.js';

const PAUSE = 1000;

/** Keep `session.arrival`, `{ arrived, total }`, while images of a case are fetched, until another one is awaited. */
export async function watchArrival(session, id) {
  const watch = (session.awaited = {});
  while (session.awaited === watch) {
    const found = document.hidden ? session.arrival : await server.arrival(id);
    const more = found && found.arrived < found.total;
    if (session.awaited === watch) {
      session.arrival = more ? found : null;
      session.changed();
    }
    const opening = session.busy && session.case?.id !== id;
    if (!document.hidden && !(more || (found && opening))) {
      return; // all are there, or the server does not tell
    }
    await new Promise(resolve => setTimeout(resolve, PAUSE));
  }
}
