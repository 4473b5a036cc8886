// SPDX-License-Identifier: Apache-2.0
import { doneSentence } from '../core/answer.js';
import { button, h } from './dom.js';

/** One line: connected or not, what is being done and how much of it, what went wrong; a way to cancel it. */
export function statusLine(session) {
  const what = h('span', { role: 'status', 'aria-live': 'polite' });
  const count = h('span', {}); // not read aloud at each slice
  const cancel = button('Cancel', 'Esc', () => session.cancel(), { className: 'kp-cancel' });
  const filled = h('div', {});
  const bar = h(
    'div',
    { className: 'kp-bar', role: 'progressbar', 'aria-label': 'Progress', 'aria-valuemin': 0 },
    filled,
  );
  const node = h(
    'div',
    {},
    h('span', { className: 'kp-dot' }),
    h('span', { className: 'kp-text' }, what, count),
    bar,
    cancel,
  );
  const update = () => {
    const { state, text, more = '', part = null } = shown(session);
    node.className = `kp-status ${state}`;
    write(what, text);
    write(count, more);
    cancel.hidden = !session.cancellable;
    bar.hidden = !part && !session.cancellable;
    fill(bar, filled, part);
  };
  return { node, update };
}

/** `{ state, text }` of the line; `more` of the text that changes all the time, and `part`, [done, total], if known. */
function shown(session) {
  const { offline, status, busy, problem, said } = session;
  if (offline || problem) {
    return { state: offline ? 'offline' : busy ? 'busy' : 'problem', text: offline ?? problem };
  }
  const doing = work(session);
  if (doing || !status) {
    return { state: 'busy', ...(doing ?? { text: 'Connecting', more: ' ...' }) };
  }
  const version = status.weights ? `, weights ${status.weights}` : '';
  return { state: 'ready', text: said ?? `Connected to ${status.name}${version}` };
}

/** What is being done; null if nothing is. */
function work({ busy, progress, arrival, case: open }) {
  if (arrival && (!busy || !open)) {
    const { arrived, total, failed } = arrival;
    const without = failed ? `, ${failed} could not be fetched` : '';
    return { text: 'Fetching images', more: `: ${arrived} of ${total}${without}`, part: [arrived, total] };
  }
  if (busy && progress) {
    const { done, total } = progress;
    return { text: busy, more: doneSentence(progress), part: total ? [done, total] : null };
  }
  return busy ? { text: busy, more: ' ...' } : null;
}

/** How much of a bar is filled: a `part`, [done, total]; null if it is not known. */
function fill(bar, filled, part) {
  const [done, total] = part ?? [0, 1];
  const now = Math.min(done, total);
  filled.style.width = `${(100 * now) / total}%`;
  for (const [name, value] of Object.entries({ 'aria-valuenow': now, 'aria-valuemax': total })) {
    if (part) {
      bar.setAttribute(name, value);
    } else {
      bar.removeAttribute(name);
    }
  }
}

function write(node, text) {
  if (node.textContent !== text) {
    node.textContent = text;
  }
}
