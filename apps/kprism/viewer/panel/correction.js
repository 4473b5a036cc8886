// SPDX-License-Identifier: Apache-2.0
import { button, h, section } from './dom.js';
import { TOOLS, setTool } from './tools.js';

/** Tools in hand, undo and redo, and whether other structures are kept. */
export function correctionSection(session) {
  const tools = TOOLS.map(([name, text, key]) => [name, button(text, key, () => setTool(session, name))]);
  const protect = h('input', { type: 'checkbox', id: 'kp-protect', checked: session.protect });
  protect.onchange = () => {
    session.protect = protect.checked;
  };
  const node = section(
    'Correct',
    h('div', { className: 'kp-grid' }, ...tools.map(([, made]) => made)),
    h('p', { className: 'kp-hint' }, 'Shift or the right button: beside it.'),
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
  };
  return { node, update };
}
