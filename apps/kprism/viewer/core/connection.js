// SPDX-License-Identifier: Apache-2.0
// Asks the server how it is, now and every few seconds, so that the panel is never behind by much.
import { server } from './server.js';

const POLL = 4000;

export async function connect(session) {
  try {
    session.status = await server.status();
    session.offline = null;
    session.structure ??= session.status.structures[0]?.name ?? null;
  } catch (error) {
    session.offline = error.message;
  }
  session.changed();
  setTimeout(() => connect(session), POLL);
}
