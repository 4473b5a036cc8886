// SPDX-License-Identifier: Apache-2.0
// The K-Prism extension of OHIF: one panel. Its content is plain DOM, so that no copy of React is shared or bundled.
// With it, OHIF opens series of which some images have no position.
import { mendUnplaced } from './core/unplaced.js';
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
  onModeEnter: ({ servicesManager, extensionManager }) => {
    const { uiNotificationService } = servicesManager.services;
    const kind = { title: 'K-Prism', type: 'error', duration: 30000 };
    mendUnplaced(extensionManager, message => uiNotificationService.show({ ...kind, message }));
  },
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
