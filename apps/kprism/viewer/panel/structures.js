// SPDX-License-Identifier: Apache-2.0
import { button, colour, h, section } from './dom.js';
import { kindNote } from './kind.js';

/** Which structure is in hand; a new one by typing its name; automatic segmentation. */
export function structuresSection(session) {
  const list = h('div', { className: 'kp-structures', role: 'radiogroup', 'aria-label': 'Structures' });
  const name = h('input', { placeholder: 'New structure', 'aria-label': 'Name of a new structure', maxlength: 64 });
  const add = () => {
    session.choose(name.value);
    name.value = '';
    name.blur(); // the next key is a shortcut again
  };
  name.onkeydown = event => {
    event.stopPropagation();
    if (event.key === 'Enter') {
      add();
    }
  };
  const automatic = button('Segment what the network knows', 'A', () => session.semantic(), { className: 'wide' });
  const typed = h('div', { className: 'kp-row' }, name, button('Add', '', add));
  const note = kindNote(session);
  const node = section('Structure', list, typed, automatic, note.node);
  let shown = '';
  const update = () => {
    automatic.disabled = Boolean(session.busy) || !session.case;
    note.update();
    const structures = session.structures;
    const state = JSON.stringify([structures, session.structure]);
    if (state === shown) {
      return;
    }
    shown = state;
    list.replaceChildren(
      ...structures.map(structure =>
        h(
          'button',
          {
            type: 'button',
            role: 'radio',
            'aria-checked': String(structure.name === session.structure),
            className: 'kp-structure',
            onclick: () => session.choose(structure.name),
          },
          h('span', { className: 'kp-swatch', style: `background: ${colour(structure.colour)}` }),
          structure.name,
        ),
      ),
    );
  };
  return { node, update };
}
