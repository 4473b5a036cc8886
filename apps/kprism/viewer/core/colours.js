// SPDX-License-Identifier: Apache-2.0

/** Red, green, blue of a structure that the server does not know yet: the same for the same name. */
export function newColour(name) {
  let hash = 2166136261; // FNV-1a
  for (const letter of name.toLowerCase()) {
    hash = Math.imul(hash ^ letter.codePointAt(0), 16777619) >>> 0;
  }
  const hue = (hash % 3600) / 600; // a sixth of the circle of colours each
  const ramp = offset => {
    const place = (offset + hue) % 6;
    return Math.round(255 * (0.95 - 0.7 * Math.max(0, Math.min(place, 4 - place, 1))));
  };
  return [ramp(5), ramp(3), ramp(1)];
}
