// SPDX-License-Identifier: Apache-2.0
// What a user can tell the server about its learning: to train, to stop, to go back to a version.
import { server } from './server.js';

export function train(session, trainer) {
  return session.work('Starting the training', () => server.train(trainer));
}

export function stopTraining(session) {
  return session.work('Stopping the training', () => server.stopTraining());
}

export function rollback(session, version) {
  return session.work('Going back', async () => {
    await server.rollback(version);
    session.status = await server.status();
  });
}
