// SPDX-License-Identifier: Apache-2.0
import { server } from './server.js';

/** Save what is drawn as a file in one of the server's formats, whether it is submitted or not. */
export function download(session, format) {
  return session.inTurn('Preparing the file', async () => {
    const { planes, names } = session.labelmap?.exists ? session.labelmap.content() : {};
    if (!planes?.size) {
      throw new Error('There is nothing to download yet: segment or draw something first.');
    }
    const { name, blob } = await server.download(session.case.id, format, { names }, planes);
    save(name, blob);
    session.scene.notify(`Downloaded: ${name}.`, 'success');
  });
}

/** Save a blob, as if a link to it was followed. */
function save(name, blob) {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // the browser may still read it
}
