// SPDX-License-Identifier: Apache-2.0

/** Where the mode shows a case: its study, which may hold other series, and its series. */
export function addressOf(study, id) {
  return `/viewer/kprism?${new URLSearchParams({ StudyInstanceUIDs: study, initialSeriesInstanceUID: id })}`;
}
