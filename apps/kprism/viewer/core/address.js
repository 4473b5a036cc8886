// SPDX-License-Identifier: Apache-2.0

/** Where the server is, with a slash at the end: this very file came from `kprism/viewer/core/` there. */
export const ROOT = new URL('../../../', import.meta.url).href;

/** Where a viewer shows a case: its study, which may hold other series, and its series. */
export function addressOf(study, id, viewer = `${ROOT}viewer/kprism`) {
  return `${viewer}?${new URLSearchParams({ StudyInstanceUIDs: study, initialSeriesInstanceUID: id })}`;
}
