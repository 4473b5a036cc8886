// SPDX-License-Identifier: Apache-2.0
// OHIF's configuration: our mode, loaded at run time, and the server's own way to the DICOMweb store. This file comes
// from `viewer/` of the server, which a reverse proxy may have under any path.
{
  const root = new URL('../', document.currentScript.src).pathname;

  window.config = {
    name: 'K-Prism',
    routerBasename: `${root}viewer`,
    extensions: [`${root}kprism/viewer/extension.js`],
    modes: [`${root}kprism/viewer/mode.js`],
    customizationService: { autoCineModalities: { $set: [] } },
    showStudyList: true,
    maxNumberOfWebWorkers: 3,
    showWarningMessageForCrossOrigin: false,
    showCPUFallbackMessage: true,
    showLoadingIndicator: true,
    strictZSpacingForVolumeViewport: true,
    investigationalUseDialog: { option: 'never' },
    groupEnabledModesFirst: true,
    defaultDataSourceName: 'dicomweb',
    dataSources: [
      {
        namespace: '@ohif/extension-default.dataSourcesModule.dicomweb',
        sourceName: 'dicomweb',
        configuration: {
          friendlyName: 'Studies of the K-Prism server',
          name: 'kprism',
          wadoUriRoot: `${root}kprism/dicom-web`,
          qidoRoot: `${root}kprism/dicom-web`,
          wadoRoot: `${root}kprism/dicom-web`,
          qidoSupportsIncludeField: true,
          imageRendering: 'wadors',
          thumbnailRendering: 'wadors',
          enableStudyLazyLoad: true,
          supportsFuzzyMatching: false,
          supportsWildcard: true,
          singlepart: 'bulkdata,video,pdf',
          bulkDataURI: { enabled: true, relativeResolution: 'studies' },
          omitQuotationForMultipartRequest: true,
        },
      },
    ],
  };
}
