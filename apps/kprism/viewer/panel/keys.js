// SPDX-License-Identifier: Apache-2.0
// Keyboard shortcuts, unless the user is typing. They are caught before OHIF's own.
import { showNextSlice } from '../core/follow.js';
import { setTool } from './tools.js';

export const KEYS = {
  a: session => session.semantic(),
  r: session => session.inContext(),
  c: session => setTool(session, 'click'),
  x: session => setTool(session, 'beside'),
  d: session => setTool(session, 'stroke'),
  o: session => setTool(session, 'box'),
  p: session => session.follow(),
  u: showNextSlice,
  b: session => setTool(session, 'brush'),
  e: session => setTool(session, 'eraser'),
  v: session => setTool(session, 'none'),
  Enter: session => session.submit(),
  n: session => session.next(session.strategy ?? 'random'),
  Escape: session => session.cancel(),
};

const HISTORY = { z: session => session.undo(), y: session => session.redo() }; // with Ctrl

// OHIF leaves the keys alone while any field has the focus, a slider or a tick box too.
const TYPING = 'input:not([type=range], [type=checkbox]), textarea, select, [contenteditable]';

export function bindKeys(session) {
  window.addEventListener(
    'keydown',
    event => {
      const action = (event.ctrlKey || event.metaKey ? HISTORY : KEYS)[event.key];
      if (action && session.case && !isForOthers(event, session)) {
        event.preventDefault();
        event.stopImmediatePropagation();
        action(session);
      }
    },
    { capture: true },
  );
}

/** A key for a field, for the button that cancels, or for OHIF, which has its own use of Escape. */
function isForOthers({ key, altKey, target }, session) {
  const free = key === 'Escape' && !session.cancellable;
  return altKey || free || target.closest?.(TYPING) || (key === 'Enter' && target.closest?.('.kp-cancel'));
}
