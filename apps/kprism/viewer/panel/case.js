// SPDX-License-Identifier: Apache-2.0
import { download } from '../core/download.js';
import { button, h, section } from './dom.js';

const FORMATS = { seg: 'DICOM SEG', rtstruct: 'RTSTRUCT', nifti: 'NIfTI', nrrd: '3D Slicer (.seg.nrrd)' };

/** Submit the label; save it as a file; open the next case. */
export function caseSection(session) {
  const count = h('p', { className: 'kp-hint' });
  const refused = h('p', { className: 'kp-hint problem', role: 'alert' });
  const submit = button('Submit as final label', 'Enter', () => session.submit(), { className: 'wide primary' });
  const strategy = h('select', { 'aria-label': 'How the next case is chosen' });
  strategy.onchange = () => {
    session.strategy = strategy.value;
  };
  const next = button('Next case', 'N', () => session.next(strategy.value || 'random'));
  const format = h(
    'select',
    { 'aria-label': 'Format of the file' },
    ...Object.entries(FORMATS).map(([value, text]) => h('option', { value }, text)),
  );
  const save = button('Download', '', () => download(session, format.value), {
    title: 'Save what is drawn as a file on this computer',
  });
  const row = (...parts) => h('div', { className: 'kp-row' }, ...parts);
  const node = section('Case', count, refused, submit, row(save, format), row(next, strategy));
  node.classList.add('kp-foot');
  let shown = '';
  const update = () => {
    submit.disabled = Boolean(session.busy) || !session.case;
    submit.firstChild.textContent = session.conflict ? 'Replace the other label' : 'Submit as final label';
    save.disabled = submit.disabled;
    next.disabled = Boolean(session.busy);
    next.firstChild.textContent = session.leaving ? 'Leave it unsubmitted' : 'Next case';
    const { cases, strategies = {} } = session.status ?? {};
    const unsaved = session.dirty ? ' · changes not submitted' : '';
    count.textContent = cases ? `${cases.labelled} of ${cases.all} labelled${unsaved}` : '';
    refused.textContent = refusals(cases).join('. ');
    const names = JSON.stringify(strategies);
    if (names !== shown) {
      shown = names;
      strategy.replaceChildren(
        ...Object.entries(strategies).map(([name, description]) =>
          h('option', { value: name, title: description }, name),
        ),
      );
      strategy.value = session.strategy ?? Object.keys(strategies)[0] ?? '';
    }
  };
  return { node, update };
}

/** Sentences about labels of the open study that the server could not use. */
function refusals(cases) {
  const study = new URLSearchParams(window.location.search).get('StudyInstanceUIDs');
  return (cases?.refused ?? [])
    .filter(entry => entry.study === study)
    .map(({ reason }) => `${reason[0].toUpperCase()}${reason.slice(1)}`);
}
