// SPDX-License-Identifier: Apache-2.0
// What an answer of a model says of itself, in sentences for the user.

/** The server's name for an image that is unlike all others (`NONE` in kprism_model/image_kind.py). */
export const UNLIKE = 'none of the kinds that the weights know';

/** Which structures were found: those of `label_names`, which holds what was named in any case, but the `absent`. */
export function foundIn({ label_names: numbers, absent = [] }) {
  const names = Object.keys(numbers);
  const found = names.filter(name => !absent.includes(name));
  if (found.length) {
    return `Found: ${found.join(', ')}.`;
  }
  if (names.length) {
    return `Not found in this case: ${names.join(', ')}.`;
  }
  return absent.length ? 'Nothing was found in this case.' : 'No structure was looked for in this case.';
}

/** How many slices of what is being done are done, to follow the word for that; `total` may be null. */
export function doneSentence({ done, total }) {
  const count = total ?? done;
  return `: ${total === null ? '' : `${Math.min(done, total)} of `}${count} ${count === 1 ? 'slice' : 'slices'}`;
}

/** An answer that shows nowhere, because other structures lie all over it and are kept. */
export function coveredSentence(structure, others) {
  const where = others.map(name => `“${name}”`).join(' and ');
  return `${structure} would lie wholly in ${where} here. Untick “Keep other structures” to draw it there.`;
}

/** Where to look next; `number` counts slices as the viewport does, null where it does not show them. */
export function nextSliceSentence({ structure, number }) {
  const where = number === null ? 'one slice' : `slice ${number}`;
  return `Look at ${where} next: ${structure} is least certain there.`;
}

/** What kind of image it was taken for, and how many structures were not looked for because of that. */
export function kindSentence({ image_kind: kind, not_asked: left = [] }) {
  const count = left.length === 1 ? '1 structure' : `${left.length} structures`;
  const were = left.length === 1 ? 'was' : 'were';
  if (kind === UNLIKE) {
    const so = left.length ? `, so ${count} ${were} not looked for` : '';
    return `This image is unlike those that the network was trained on${so}; clicks and references still work.`;
  }
  return left.length
    ? `This image was taken for “${kind}”: ${count} that cannot be in such an image ${were} not looked for.`
    : `This image was taken for “${kind}”: every structure that the network knows was looked for.`;
}
