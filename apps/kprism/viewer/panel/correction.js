// SPDX-License-Identifier: Apache-2.0
import { nextSliceSentence } from '../core/answer.js';
import { REACHES, showNextSlice } from '../core/follow.js';
import { button, h, section } from './dom.js';
import { TOOLS, setRadius, setTool } from './tools.js';

/** Tools in hand, undo and redo, following through the slices, and whether other structures are kept. */
export function correctionSection(session) {
  const tools = TOOLS.map(([name, text, key]) => [name, button(text, key, () => setTool(session, name))]);
  const protect = h('input', { type: 'checkbox', id: 'kp-protect', checked: session.protect });
  protect.onchange = () => {
    session.protect = protect.checked;
  };
  const size = h('input', { type: 'range', id: 'kp-radius', min: 1, max: 50, value: session.radius });
  const length = h('span', {});
  size.oninput = () => {
    setRadius(session, Number(size.value));
    session.changed();
  };
  const radius = h('label', { for: 'kp-radius', className: 'kp-check' }, 'Radius', size, length);
  const follow = button('Follow', 'P', () => session.follow(), { title: 'Find the structure on the other slices' });
  const reach = h(
    'select',
    { 'aria-label': 'How far to follow' },
    ...Object.keys(REACHES).map(name => h('option', { value: name }, name)),
  );
  reach.value = session.reach;
  reach.onchange = () => {
    session.reach = reach.value;
  };
  const through = h('div', { className: 'kp-row' }, follow, reach);
  const sentence = h('p', { className: 'kp-hint' });
  const proposal = h(
    'div',
    { role: 'status' },
    sentence,
    button('Go there', 'U', () => showNextSlice(session)),
  );
  const node = section(
    'Correct',
    h('div', { className: 'kp-grid' }, ...tools.map(([, made]) => made)),
    h('p', { className: 'kp-hint' }, 'Shift or the right button: beside it.'),
    radius,
    through,
    proposal,
    h(
      'div',
      { className: 'kp-row' },
      button('Undo', 'Ctrl Z', () => session.undo()),
      button('Redo', 'Ctrl Y', () => session.redo()),
    ),
    h('label', { for: 'kp-protect', className: 'kp-check' }, protect, 'Keep other structures'),
  );
  const update = () => {
    for (const [name, made] of tools) {
      made.setAttribute('aria-pressed', String(session.toolName === name));
      made.disabled = !session.case;
    }
    radius.hidden = !['brush', 'eraser'].includes(session.toolName);
    length.textContent = `${session.radius} mm`;
    follow.disabled = Boolean(session.busy) || !session.case;
    through.hidden = session.case?.grid[2] === 1;
    const { nextSlice } = session;
    proposal.hidden = !nextSlice;
    if (nextSlice) {
      const number = session.scene.numberOf(session.case.frames[nextSlice.k]);
      sentence.textContent = nextSliceSentence({ structure: nextSlice.structure, number });
    }
  };
  return { node, update };
}
