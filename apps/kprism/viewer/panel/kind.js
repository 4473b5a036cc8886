// SPDX-License-Identifier: Apache-2.0
import { kindSentence } from '../core/answer.js';
import { h } from './dom.js';

/** What kind of image the case was taken for; the structures that were not looked for because of that, to ask for. */
export function kindNote(session) {
  const sentence = h('p', { className: 'kp-hint', role: 'status' });
  const names = h('div', { className: 'kp-structures' });
  const summary = h('summary', {}, 'Names: press one to look for it');
  const left = h('details', { className: 'kp-hint' }, summary, names);
  const node = h('div', { className: 'kp-note' }, sentence, left);
  const name = text =>
    h('button', { type: 'button', className: 'kp-name', onclick: () => session.lookFor(text) }, text);
  let shown = '';
  const update = () => {
    const { image_kind: kind, not_asked: texts = [] } = session.answer ?? {};
    const state = JSON.stringify([kind, texts]);
    if (state !== shown) {
      shown = state;
      node.hidden = !kind;
      sentence.textContent = kind ? kindSentence(session.answer) : '';
      left.hidden = !texts.length;
      left.open = false;
      names.replaceChildren(...texts.map(name));
    }
    for (const made of names.children) {
      made.disabled = Boolean(session.busy);
    }
  };
  return { node, update };
}
