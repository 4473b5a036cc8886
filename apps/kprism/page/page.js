// SPDX-License-Identifier: Apache-2.0
// The status page: asks the server every few seconds and writes down what it says.
import { addressOf, ROOT } from './viewer/core/address.js';
import { problemOf } from './viewer/core/answers.js';
import { drawCurve } from './curve.js';

const API = `${ROOT}kprism/api`;
const POLL = 3000;
const at = id => document.getElementById(id);

async function ask(address, options) {
  const answer = await fetch(address, options);
  const problem = await problemOf(answer);
  if (problem !== null) {
    throw new Error(problem);
  }
  return answer.json();
}

function say(text, problem = false) {
  at('state').textContent = text;
  at('state').className = problem ? 'problem' : '';
}

/** Do what a button asks and show the result at once. */
async function act(address, options) {
  try {
    await ask(address, options);
    await refresh();
  } catch (error) {
    say(error.message, true);
  }
}

async function refresh() {
  const status = await ask(`${API}/status`);
  showUpgrade(status);
  showCases(status.cases);
  showWorklist(status);
  showNotServed(status);
  showTraining(status);
  showVersions(status);
  showServed(status.served);
  at('report-section').hidden = !status.report;
  at('reported').textContent = status.report ? new Date(status.report * 1000).toLocaleString() : '';
  say(`Connected, ${new Date(status.time * 1000).toLocaleTimeString()}`);
}

function showWorklist(status) {
  const { worklist, worklist_problem: problem, worklist_missing: missing, worklist_missing_count: count } = status;
  at('worklist').hidden = !worklist;
  at('worklist').textContent = `Only those of the work list are served: ${worklist}`;
  at('worklist-problem').hidden = !problem;
  at('worklist-problem').textContent = problem ?? '';
  at('worklist-missing').hidden = !count;
  const more = count > missing.length ? ', ...' : '';
  const lines = count === 1 ? '1 line of it names' : `${count} lines of it name`;
  at('worklist-missing').textContent = `${lines} nothing that is in the studies: ${missing.join(', ')}${more}`;
}

/** What is left to do after an upgrade to another network: one training, which takes all labels as any other does. */
function showUpgrade({ upgrade, training, trainers }) {
  at('upgrade-section').hidden = !upgrade;
  at('upgrade').textContent = upgrade?.sentence ?? '';
  at('train-all').hidden = training.running || !trainers.length || !upgrade?.labels;
  at('train-all').onclick = () => startTraining(trainers[0]);
}

function startTraining(trainer) {
  return act(`${ROOT}train/${encodeURIComponent(trainer)}`, { method: 'POST' });
}

function showCases({ all, labelled, waiting, refused, indexed }) {
  at('indexed').hidden = !indexed;
  at('indexed').textContent = indexed ? `${indexed[0]} of ${indexed[1]} files in the folder are indexed.` : '';
  at('all').textContent = all;
  at('labelled').textContent = labelled;
  at('share').value = all ? labelled / all : 0;
  at('waiting').replaceChildren(...waiting.map(entry => item(entry)));
  at('refused-part').hidden = !refused.length;
  at('refused-count').textContent = refused.length;
  at('refused').replaceChildren(...refused.map(entry => item(entry, `: ${entry.reason}`)));
}

/** What lies in the studies but cannot be segmented, and why; it is neither counted nor offered as the next case. */
function showNotServed({ not_served: entries, not_served_count: count, nothing_to_serve: nothing }) {
  at('not-served-section').hidden = !count && !nothing;
  at('nothing-to-serve').hidden = !nothing;
  at('nothing-to-serve').textContent = nothing ?? '';
  const sentences = [
    `${count === 1 ? 'This is' : `These ${count} are`} in the studies, but cannot be segmented.`,
    'Nobody is asked to label what is listed here. What is mended or replaced is served again within seconds.',
    count > entries.length ? `The first ${entries.length} are shown.` : '',
  ];
  at('not-served-count').textContent = count ? sentences.join(' ') : '';
  at('not-served').replaceChildren(...entries.map(notServedItem));
}

function notServedItem({ name, reason }) {
  const entry = document.createElement('li');
  const title = document.createElement('strong');
  title.textContent = name;
  entry.append(title, ` ${reason}`);
  return entry;
}

/** A case in a list, with a link to it where the viewer can show it. */
function item({ id, title, study }, text = '') {
  const entry = document.createElement('li');
  const name = document.createElement(study ? 'a' : 'span');
  name.textContent = title ?? id;
  if (study) {
    name.href = addressOf(study, id);
  }
  entry.append(name, text);
  return entry;
}

function showTraining({ training, trainers }) {
  at('training').textContent = training.sentence ?? 'There has been none yet.';
  at('progress').hidden = !training.running;
  at('progress').value = training.progress;
  at('train').hidden = training.running || !trainers.length;
  at('stop').hidden = !training.running;
  at('train').onclick = () => startTraining(trainers[0]);
  at('stop').onclick = () => act(`${ROOT}train/`, { method: 'DELETE' });
  at('log').textContent = training.log.join('\n');
  at('curve').toggleAttribute('hidden', training.curve.length < 2);
  drawCurve(at('curve'), training.curve);
}

function showVersions({ versions, weights, device }) {
  at('weights').textContent = weights;
  at('device').textContent = device;
  at('versions').replaceChildren(...versions.map(versionRow));
}

function versionRow({ id, title, made, dice, current, earlier, warning }) {
  const row = document.createElement('tr');
  row.className = current ? 'current' : earlier ? 'earlier' : '';
  const date = made ? new Date(made * 1000).toLocaleString() : '–';
  const name = warning ? `${title ?? id} (${warning})` : (title ?? id);
  for (const text of [name, date, dice === null || dice === undefined ? '–' : dice.toFixed(3)]) {
    row.insertCell().textContent = text;
  }
  const cell = row.insertCell();
  if (current) {
    cell.textContent = 'in use';
  } else if (earlier) {
    cell.textContent = 'of an earlier network';
  } else {
    const button = document.createElement('button');
    button.type = 'button';
    button.textContent = 'Use this version';
    button.onclick = () => act(`${API}/versions/${encodeURIComponent(id)}/current`, { method: 'POST' });
    cell.append(button);
  }
  return row;
}

/** What answers each structure in each mode; structures that the shipped weights answer in all modes are left out. */
function showServed(served) {
  const rows = new Map();
  for (const entry of served) {
    rows.set(entry.structure, { ...rows.get(entry.structure), [entry.mode]: entry });
  }
  const shown = [...rows].filter(([, modes]) => Object.values(modes).some(entry => entry.answered_by !== 'shipped'));
  at('served-table').hidden = !shown.length;
  at('served-rest').textContent = `Everything ${shown.length ? 'else ' : ''}is answered by the shipped weights.`;
  at('served').replaceChildren(...shown.map(([structure, modes]) => servedRow(structure, modes)));
}

function servedRow(structure, modes) {
  const row = document.createElement('tr');
  row.insertCell().textContent = structure;
  for (const mode of ['semantic', 'in_context', 'interactive']) {
    const { answered_by: name, provisional } = modes[mode] ?? {};
    row.insertCell().textContent = name ? `${name}${provisional ? ' (provisional)' : ''}` : '–';
  }
  return row;
}

async function poll() {
  try {
    await refresh();
  } catch (error) {
    const text = error instanceof TypeError ? 'The server does not answer; trying again.' : error.message;
    say(text, true);
  }
  setTimeout(poll, POLL);
}

poll();
