// SPDX-License-Identifier: Apache-2.0
// The K-Prism server, from which this very file came: every request, and every failure as a sentence for the user.
import { ROOT } from './address.js';
import { problemOf, sentence } from './answers.js';
import { BROKEN_OFF, messages } from './frames.js';
import { pack, unpack } from './planes.js';

const API = `${ROOT}kprism/api`;

/** A request that failed; the message is a sentence to show, `status` is 0 where no answer came. */
export class ServerError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function ask(address, options = {}) {
  let answer;
  try {
    answer = await fetch(address, options);
  } catch (error) {
    if (error.name === 'AbortError') {
      throw error;
    }
    throw new ServerError('The K-Prism server does not answer. Your work stays here; try again in a moment.', 0);
  }
  const problem = await problemOf(answer);
  if (problem !== null) {
    throw new ServerError(problem, answer.ok ? 0 : answer.status);
  }
  return answer;
}

async function json(address, options) {
  return (await ask(address, options)).json();
}

function sending(method, body) {
  return { method, headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body) };
}

/** The name in the Content-Disposition of a download. */
function fileName(disposition) {
  const encoded = /filename\*=UTF-8''([^;]+)/i.exec(disposition ?? '')?.[1];
  return encoded ? decodeURIComponent(encoded) : 'label';
}

const at = id => encodeURIComponent(id);

async function askModel(model, id, params, planes, signal, stream = '') {
  const form = new FormData();
  form.append('params', JSON.stringify(params));
  if (planes) {
    form.append('planes', await pack({}, planes), 'planes.gz');
  }
  return ask(`${API}/infer/${at(model)}?image=${at(id)}${stream}`, { method: 'POST', body: form, signal });
}

export const server = {
  status: () => json(`${API}/status`),

  case: id => json(`${API}/case/${at(id)}`),

  /** `{ arrived, total, failed }`: how many images of a case the server has fetched, and how many it could not. */
  arrival: id => json(`${API}/case/${at(id)}/arrival`),

  /** `{ header: { names, version }, planes }`, or null if the case has no submitted label. */
  async label(id) {
    try {
      return unpack(await (await ask(`${API}/case/${at(id)}/label`)).blob());
    } catch (error) {
      if (error.status === 404) {
        return null;
      }
      throw error;
    }
  },

  /** Store planes as the final label of a case. */
  submit: async (id, header, planes) =>
    json(`${API}/case/${at(id)}/label`, { method: 'PUT', body: await pack(header, planes) }),

  /** Planes as a file, `{ name, blob }`, in one of the server's formats; nothing is stored. */
  async download(id, format, header, planes) {
    const body = await pack(header, planes);
    const answer = await ask(`${API}/case/${at(id)}/download?format=${at(format)}`, { method: 'POST', body });
    return { name: fileName(answer.headers.get('Content-Disposition')), blob: await answer.blob() };
  },

  /** Ask a model; with `planes` only these are corrected. Answers `{ result, planes }`. */
  async infer(model, id, params, planes = null, signal = undefined) {
    const answer = await askModel(model, id, params, planes, signal);
    const { header, planes: masks } = await unpack(await answer.blob());
    return { result: header.result, planes: masks };
  },

  /**
   * The same, and `onPart` is told what is known before the answer: `{ done, total, names, planes }`, slices that are
   * done of how many (null if nobody knows), and planes that are new, whose values have `names`.
   */
  async inferStream(model, id, params, planes, { onPart, signal }) {
    const answer = await askModel(model, id, params, planes, signal, '&stream=1');
    for await (const { header, planes: masks } of messages(answer.body.getReader())) {
      signal.throwIfAborted(); // it may have been aborted while the last bytes were unpacked
      if (header.error) {
        throw new ServerError(sentence(header.error.detail), header.error.status);
      }
      if (header.result) {
        return { result: header.result, planes: masks };
      }
      onPart({ ...header.part, planes: masks });
    }
    throw new ServerError(BROKEN_OFF, 0);
  },

  /** Labelled cases, the newest first; there may be thousands, and the panel shows a few. */
  references: () => json(`${API}/references?limit=50`),

  thumbnail: (id, structure) => `${API}/case/${at(id)}/thumbnail?structure=${at(structure)}`,

  next: (strategy, body) => json(`${API}/next/${at(strategy)}`, sending('POST', body)),

  train: trainer => json(`${ROOT}train/${at(trainer)}`, sending('POST', {})),

  stopTraining: () => json(`${ROOT}train/`, { method: 'DELETE' }),

  rollback: version => json(`${API}/versions/${at(version)}/current`, sending('POST', {})),
};
