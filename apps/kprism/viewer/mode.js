// SPDX-License-Identifier: Apache-2.0
// The K-Prism mode: OHIF's own segmentation mode with our panel in front. It is derived when OHIF loads it, so it has
// whatever tools that mode has in the version of OHIF at hand.
const STOCK = '@ohif/mode-segmentation';
const PANEL = 'kprism.panelModule.kprism';

async function modeFactory({ loadModules }) {
  const [stock] = await loadModules([STOCK]);
  const original = stock.modeInstance ?? stock.modeFactory?.({}) ?? stock;
  return {
    ...original,
    id: 'kprism',
    routeName: 'kprism',
    displayName: 'K-Prism',
    isValidMode: ({ modalities = '' }) => ({
      valid: !/^(SEG|SR|RTSTRUCT|DOC)?$/.test(modalities),
      description: 'K-Prism needs a study with images',
    }),
    onModeEnter: props => {
      window.kprism?.enter();
      return original.onModeEnter?.(props);
    },
    onModeExit: props => {
      window.kprism?.leave(); // before OHIF takes the label maps away
      return original.onModeExit?.(props);
    },
    routes: original.routes.map(route => ({
      ...route,
      path: 'kprism',
      layoutTemplate: async props => {
        const layout = await route.layoutTemplate(props);
        return {
          ...layout,
          props: {
            ...layout.props,
            rightPanels: [PANEL, ...(layout.props.rightPanels ?? [])],
            rightPanelClosed: false,
          },
        };
      },
    })),
  };
}

export default { id: 'kprism', modeFactory, extensionDependencies: {} };
