// SPDX-License-Identifier: Apache-2.0
import { h } from './dom.js';

/** One line: connected or not, what is being done, what went wrong. */
export function statusLine(session) {
  const node = h('div', { className: 'kp-status', role: 'status', 'aria-live': 'polite' });
  const update = () => {
    const { offline, status, busy, problem } = session;
    const state = offline ? 'offline' : busy ? 'busy' : status ? 'ready' : 'busy';
    const version = status?.weights ? `, weights ${status.weights}` : '';
    const text =
      offline ??
      problem ??
      (busy ? `${busy} ...` : status ? `Connected to ${status.name}${version}` : 'Connecting ...');
    node.className = `kp-status ${problem && !busy ? 'problem' : state}`;
    node.replaceChildren(h('span', { className: 'kp-dot' }), h('span', { className: 'kp-text' }, text));
  };
  return { node, update };
}
