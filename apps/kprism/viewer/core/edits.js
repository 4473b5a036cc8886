// SPDX-License-Identifier: Apache-2.0
// Changes of a label map: how the answer of a model is merged into what is there, and what undoing it takes.

/** Changed pixels of one plane: their indices, and their values before and after. */
export function difference(before, after) {
  const places = [];
  for (let at = 0; at < before.length; at++) {
    if (before[at] !== after[at]) {
      places.push(at);
    }
  }
  return {
    places: Uint32Array.from(places),
    before: Uint8Array.from(places, at => before[at]),
    after: Uint8Array.from(places, at => after[at]),
  };
}

/** What of a `difference` is still as it was made in a plane. */
export function standing({ places, before, after }, plane) {
  const kept = [...places.keys()].filter(at => plane[places[at]] === after[at]);
  return {
    places: Uint32Array.from(kept, at => places[at]),
    before: Uint8Array.from(kept, at => before[at]),
    after: Uint8Array.from(kept, at => after[at]),
  };
}

/**
 * A plane with segments replaced by an answer. `values` maps the answer's values to segments; these (or `replaced`) are
 * taken out and drawn anew. Where other segments lie they are kept if `protect`, else the answer is drawn over them.
 */
export function merged(plane, answer, values, protect, replaced = new Set(values.values())) {
  const table = new Uint8Array(256);
  for (const [value, segment] of values) {
    table[value] = segment;
  }
  const stays = Uint8Array.from({ length: 256 }, (_, segment) => (replaced.has(segment) ? 0 : segment));
  return plane.map((old, at) => {
    const kept = stays[old];
    const drawn = answer ? table[answer[at]] : 0;
    return drawn && !(protect && kept) ? drawn : kept;
  });
}

/**
 * The planes of a label map that an answer changes, as they become: those that it holds, and those where it leaves a
 * replaced segment out (of the slices `anew`, if only these were looked at). Otherwise as in `merged`.
 */
export function answered(labelmap, planes, values, protect, { replaced = new Set(values.values()), anew = null } = {}) {
  const after = new Map();
  for (const k of labelmap.slices) {
    const plane = labelmap.plane(k);
    const looked = planes.has(k) || !anew || anew.has(k);
    if (looked && (planes.has(k) || plane.some(value => replaced.has(value)))) {
      after.set(k, merged(plane, planes.get(k), values, protect, replaced));
    }
  }
  return after;
}

/**
 * The names of the structures that lie on all of an answer, so that its segment shows nowhere `after` it was merged;
 * none if some of it shows, or if the answer is empty.
 */
export function coveredBy(labelmap, answer, after, segment) {
  if (after.includes(segment)) {
    return [];
  }
  const covering = new Set(after.filter((_, at) => answer[at]));
  return [...labelmap.segments].filter(([, value]) => covering.has(value)).map(([name]) => name);
}

/** Where a plane holds a segment: 1 and 0. */
export function maskOf(plane, segment) {
  return plane.map(value => Number(value === segment));
}

export function same(first, second) {
  return first.length === second.length && first.every((value, at) => value === second[at]);
}
