// SPDX-License-Identifier: Apache-2.0
// The K-Prism extension of OHIF: one panel. Its content is plain DOM, so that no copy of React is shared or bundled.
import { mountPanel } from './panel/panel.js';

const REACT_ELEMENT = Symbol.for('react.element');

// One React element whose node is filled by us; React calls `ref` with null when the panel is closed.
function island(fill) {
  return {
    $$typeof: REACT_ELEMENT,
    type: 'div',
    key: null,
    ref: node => node && fill(node),
    props: { className: 'kprism-panel' },
    _owner: null,
    _store: {},
  };
}

export default {
  id: 'kprism',
  getPanelModule: ({ servicesManager, commandsManager, extensionManager }) => [
    {
      name: 'kprism',
      iconName: 'tab-segmentation',
      iconLabel: 'K-Prism',
      label: 'K-Prism',
      component: () => island(node => mountPanel(node, { servicesManager, commandsManager, extensionManager })),
    },
  ],
};
