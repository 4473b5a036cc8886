// SPDX-License-Identifier: Apache-2.0
// Segmenting without prompts: what the weights know, or what labelled cases show.
import { volumeOf } from './cuts.js';
import { answered, merged } from './edits.js';
import { asItComes } from './coming.js';
import { server } from './server.js';

/**
 * Ask a model about the whole case: `{ labelmap, result, after }`, the planes of the label map as they become. What it
 * says of a structure that the user `named` leaves all others as they are.
 */
export async function automatic(session, model, params, named) {
  const { case: open, scene } = session;
  const k = scene.inView(open.frames);
  const asked = { model, id: open.id, params: { ...params, slice: k, client_id: session.clientId } };
  const volume = volumeOf(open, k);
  const { labelmap, result, planes } = await (open.grid[2] > 1 ? volumeAnswer : imageAnswer)(session, asked, named);
  const { values, replaced } = merging(session, labelmap, result.label_names, named);
  const after = answered(labelmap, planes, values, session.protect, { replaced, anew: volume });
  return { labelmap, result, after };
}

async function volumeAnswer(session, asked, named) {
  const isNew = !session.labelmap?.exists;
  const labelmap = await session.ready();
  const drawing = names => {
    const { values, replaced } = merging(session, labelmap, names, named);
    // networks may answer one after the other for other structures: the first takes out what was found before
    return (plane, part, again) => merged(plane, part, values, session.protect, again ? undefined : replaced);
  };
  try {
    return { labelmap, ...(await asItComes(session, labelmap, asked, drawing)) };
  } catch (error) {
    if (isNew && labelmap.exists && !labelmap.segments.size) {
      labelmap.remove();
    }
    throw error;
  }
}

async function imageAnswer(session, { model, id, params }) {
  const answer = await server.infer(model, id, params);
  return { labelmap: await session.ready(), ...answer };
}

/** The segments for an answer whose values have names (name -> value), and all that it replaces. */
function merging(session, labelmap, numbers, named) {
  const values = new Map(
    Object.entries(numbers).map(([name, value]) => [value, labelmap.segmentOf(session.style(name))]),
  );
  const given = named ? [] : [...session.automatic].map(name => labelmap.segments.get(name)).filter(Boolean);
  return { values, replaced: new Set([...values.values(), ...given]) };
}
