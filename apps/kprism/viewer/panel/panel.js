// SPDX-License-Identifier: Apache-2.0
// The panel: a stack of sections, drawn anew whenever the session changes. The session outlives the panel, which OHIF
// takes away when another tab is opened.
import { connect } from '../core/connection.js';
import { Markers } from '../core/markers.js';
import { Pointer } from '../core/pointer.js';
import { Scene } from '../core/scene.js';
import { Session } from '../core/session.js';
import { bindKeys } from './keys.js';
import { caseSection } from './case.js';
import { correctionSection } from './correction.js';
import { h } from './dom.js';
import { learningSection } from './learning.js';
import { referencesSection } from './references.js';
import { statusLine } from './status.js';
import { structuresSection } from './structures.js';

const SECTIONS = [statusLine, structuresSection, correctionSection, referencesSection, learningSection, caseSection];

let session = null;

/** Fill a node with the panel. */
export function mountPanel(node, managers) {
  session ??= start(managers);
  addStyle();
  const body = h('div', { className: 'kp-body' });
  node.replaceChildren(body);
  const parts = SECTIONS.map(make => make(session));
  body.append(...parts.map(part => part.node));
  const update = () => {
    if (!node.isConnected) {
      session.removeEventListener('change', update);
      return;
    }
    parts.forEach(part => part.update());
  };
  session.addEventListener('change', update);
  parts.forEach(part => part.update());
}

function start(managers) {
  const scene = new Scene(managers);
  const made = new Session(scene);
  const pointer = new Pointer(made);
  const markers = new Markers(made);
  const follow = () => {
    pointer.watch();
    markers.watch();
    made.open();
  };
  const grid = scene.services.viewportGridService;
  for (const event of Object.values(grid.EVENTS)) {
    grid.subscribe(event, () => setTimeout(follow));
  }
  setInterval(follow, 1500); // viewports are made some time after the grid says so
  follow();
  connect(made);
  bindKeys(made);
  window.addEventListener('beforeunload', event => made.unsaved && event.preventDefault());
  window.kprism = made;
  return made;
}

function addStyle() {
  const address = new URL('./panel.css', import.meta.url).href;
  if (!document.querySelector(`link[href="${address}"]`)) {
    document.head.append(h('link', { rel: 'stylesheet', href: address }));
  }
}
