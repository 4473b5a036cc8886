// SPDX-License-Identifier: Apache-2.0
import { rollback, stopTraining, train } from '../core/trainings.js';
import { button, h, section } from './dom.js';

const NONE = { running: false, progress: 0, sentence: null };

/** Training: progress, the version in use, and the way back to an earlier one. */
export function learningSection(session) {
  const bar = h('progress', { max: 1, 'aria-label': 'Progress of the training' });
  const text = h('p', { className: 'kp-hint' });
  const start = button('Train on the labels', '', () => train(session, session.status.trainers[0]));
  const stop = button('Stop', '', () => stopTraining(session));
  const versions = h('select', { 'aria-label': 'Versions of the weights' });
  const back = button('Use this version', '', () => rollback(session, versions.value));
  const choice = h('div', { className: 'kp-row' }, versions, back);
  const node = section('Learning', text, bar, h('div', { className: 'kp-row' }, start, stop), choice);
  let shown = '';
  const update = () => {
    const { training = NONE, versions: listed = [], trainers = [] } = session.status ?? {};
    const known = listed.filter(version => !version.earlier); // one of an earlier network cannot serve
    node.hidden = !trainers.length && !known.length;
    bar.hidden = !training.running;
    bar.value = training.progress;
    start.hidden = training.running || !trainers.length;
    stop.hidden = !training.running;
    text.textContent = training.sentence ?? 'The network has not been trained on this store yet.';
    choice.hidden = known.length < 2;
    const state = JSON.stringify(known);
    if (state !== shown) {
      shown = state;
      versions.replaceChildren(...known.map(version => h('option', { value: version.id }, version.title)));
      versions.value = known.find(version => version.current)?.id ?? '';
    }
  };
  return { node, update };
}
