// SPDX-License-Identifier: Apache-2.0
// Keyboard shortcuts, unless the user is typing. They are caught before OHIF's own.
import { setTool } from './tools.js';

export const KEYS = {
  a: session => session.semantic(),
  r: session => session.inContext(),
  c: session => setTool(session, 'click'),
  x: session => setTool(session, 'beside'),
  d: session => setTool(session, 'stroke'),
  b: session => setTool(session, 'brush'),
  e: session => setTool(session, 'eraser'),
  v: session => setTool(session, 'none'),
  Enter: session => session.submit(),
  n: session => session.next(session.strategy ?? 'random'),
};

export function bindKeys(session) {
  window.addEventListener(
    'keydown',
    event => {
      const typing = event.target.closest?.('input, textarea, select, [contenteditable]');
      const action = KEYS[event.key];
      const plain = !event.ctrlKey && !event.metaKey && !event.altKey;
      if (action && plain && !typing && session.case) {
        event.preventDefault();
        event.stopImmediatePropagation();
        action(session);
      }
    },
    { capture: true },
  );
}
