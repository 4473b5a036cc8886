// SPDX-License-Identifier: Apache-2.0
import { server } from '../core/server.js';
import { button, h, section } from './dom.js';

const SHOWN = 12;

/** Labelled cases as pictures; those that are ticked serve as references, without a tick the server chooses. */
export function referencesSection(session) {
  const strip = h('div', { className: 'kp-references' });
  const hint = h('p', { className: 'kp-hint' });
  const run = button('Segment like the references', 'R', () => session.inContext(), { className: 'wide' });
  const node = section('References', strip, hint, run);
  let shown = '';
  const update = () => {
    const references = session.references.filter(reference => reference.id !== session.case?.id);
    run.disabled = Boolean(session.busy) || !session.case || !references.length;
    hint.textContent = references.length
      ? session.chosen.size
        ? `${session.chosen.size} chosen`
        : 'None chosen: the server takes the most suitable ones.'
      : 'No labelled case yet: submit one, and it is a reference.';
    const state = JSON.stringify([references, [...session.chosen], session.structure]);
    if (state === shown) {
      return;
    }
    shown = state;
    strip.replaceChildren(...references.slice(0, SHOWN).map(reference => card(session, reference)));
  };
  return { node, update };
}

function card(session, { id, title, names }) {
  const chosen = session.chosen.has(id);
  const structure = names.includes(session.structure) ? session.structure : '';
  const toggle = () => {
    session.chosen[chosen ? 'delete' : 'add'](id);
    session.changed();
  };
  return h(
    'button',
    {
      type: 'button',
      className: 'kp-card',
      'aria-pressed': String(chosen),
      title: `${title}: ${names.join(', ')}`,
      onclick: toggle,
    },
    h('img', { src: server.thumbnail(id, structure), alt: `${title}: ${names.join(', ')}`, loading: 'lazy' }),
    h('span', {}, title),
  );
}
