// SPDX-License-Identifier: Apache-2.0
// What is wrong with an answer, as a sentence. It may come from a reverse proxy or a login in between, not the server.

const WORK = 'Your work stays here';
const WORK_ON = 'your work stays here';

const SENTENCES = {
  401: `You are not logged in, or not any more. Log in again in another tab; ${WORK_ON}.`,
  403: 'This is not allowed here; a login or a proxy between this page and the server may want another user.',
  413: 'A proxy between this page and the server takes no request that large (413). Its limit has to be raised.',
  502: `The K-Prism server does not answer (502). ${WORK}; try again in a moment.`,
  503: `The K-Prism server does not answer (503). ${WORK}; try again in a moment.`,
  504: `The K-Prism server did not answer in time (504). ${WORK}; try again in a moment.`,
};

const LOGIN =
  'Something else answered in place of the K-Prism server, perhaps a login. ' +
  `Log in again in another tab; ${WORK_ON}.`;

/** A sentence about an answer that cannot be used, or null; its text is read only where it failed. */
export async function problemOf(answer) {
  if (answer.ok) {
    return answer.headers.get('Content-Type')?.startsWith('text/html') ? LOGIN : null;
  }
  const told = detailIn(await answer.text());
  return told ?? SENTENCES[answer.status] ?? `The server answered with status ${answer.status}.`;
}

function detailIn(text) {
  try {
    const { detail } = JSON.parse(text);
    return typeof detail === 'string' && detail ? sentence(detail) : null;
  } catch {
    return null;
  }
}

/** A message of the server as a sentence. */
export function sentence(detail) {
  return detail[0].toUpperCase() + detail.slice(1);
}
