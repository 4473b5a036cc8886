// SPDX-License-Identifier: Apache-2.0

/** The same for one browser, so that the server can tell users apart who are at work on one case. */
export function clientId() {
  const key = 'kprism-client';
  const known = localStorage.getItem(key) ?? crypto.randomUUID?.() ?? String(Math.random()).slice(2);
  localStorage.setItem(key, known);
  return known;
}
