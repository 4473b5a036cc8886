// SPDX-License-Identifier: Apache-2.0
// Cuts through a volume across one of its axes: 0 (columns), 1 (rows) or 2, the images themselves. A cut is
// `{ axis, index }`; the lower of its two axes is the faster one: the column of an image.
export const IMAGES = 2;

/** The images of the volume that image k of a series belongs to, if the series holds several; else null: all. */
export function volumeOf({ grid, volumes }, k) {
  if (!(volumes > 1)) {
    return null;
  }
  const count = grid[2] / volumes;
  const first = Math.floor(k / count) * count;
  return new Set(Array.from({ length: count }, (_, at) => first + at));
}

/** A cut as one word. */
export function cutKey({ axis, index }) {
  return `${axis} ${index}`;
}

/** Pixels along the first side of a cut through a volume of `grid` (columns, rows, slices). */
export function widthOf({ axis }, grid) {
  return grid[axis === 0 ? 1 : 0];
}

/**
 * `{ cut, points }` of places `{ key, column, row }` on one cut across an axis: the cut, and [x, y] of each place.
 * Null if one of them is in no image of `frames`.
 */
export function locate(frames, axis, places) {
  const rows = new Map(frames.map(([instance, number], k) => [`${instance} ${number}`, k]));
  const voxels = places.map(({ key, column, row }) => [column, row, rows.get(key)]);
  if (voxels.some(([, , k]) => k === undefined)) {
    return null;
  }
  const points = voxels.map(voxel => voxel.filter((_, side) => side !== axis));
  return { cut: { axis, index: Math.round(voxels[0][axis]) }, points };
}

/** The voxel [i, j, k] at [x, y] of a cut. */
export function toVoxel({ axis, index }, [x, y]) {
  return [
    [index, x, y],
    [x, index, y],
    [x, y, index],
  ][axis];
}

/** A copy of the pixels of a cut; `plane(k)` gives the pixels of image k, undefined if they are all 0. */
export function pixelsOf(cut, grid, plane) {
  const [columns, rows, slices] = grid;
  if (cut.axis === IMAGES) {
    return Uint8Array.from(plane(cut.index) ?? new Uint8Array(columns * rows));
  }
  const width = widthOf(cut, grid);
  const pixels = new Uint8Array(width * slices);
  for (let k = 0; k < slices; k++) {
    const image = plane(k);
    for (let x = 0; image && x < width; x++) {
      pixels[k * width + x] = image[place(cut, columns, x)];
    }
  }
  return pixels;
}

/** The images that the pixels of a cut change, as they become: Map of k to a changed copy of `plane(k)`. */
export function imagesOf(cut, grid, pixels, plane) {
  const [columns, , slices] = grid;
  if (cut.axis === IMAGES) {
    return new Map([[cut.index, pixels]]);
  }
  const width = widthOf(cut, grid);
  const images = new Map();
  for (let k = 0; k < slices; k++) {
    const before = plane(k);
    for (let x = 0; x < width; x++) {
      const value = pixels[k * width + x];
      if (value !== before[place(cut, columns, x)]) {
        images.set(k, images.get(k) ?? Uint8Array.from(before));
        images.get(k)[place(cut, columns, x)] = value;
      }
    }
  }
  return images;
}

/** The index across an axis (0 or 1) of a pixel of an image. */
export function indexAcross(axis, at, columns) {
  return axis === 0 ? at % columns : Math.floor(at / columns);
}

/** Where in an image the x-th pixel of a cut is. */
function place({ axis, index }, columns, x) {
  return axis === 0 ? x * columns + index : index * columns + x;
}
