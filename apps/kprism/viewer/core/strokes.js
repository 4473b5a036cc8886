// SPDX-License-Identifier: Apache-2.0
// Clicks, strokes and boxes as pixels of a plane, for the scribbles model.
export const BEFORE = 1;
export const INSIDE = 2;
export const OUTSIDE = 3;

const RING = [0.2, 0.3]; // of the ellipse in a box, by the squared distance from its centre: 1 on its outline
const CENTRE = 0.02;
const FRAME = 2; // pixels around a box

/**
 * Draw a box between two corners [column, row]: the ellipse in it as the mask so far, unless there is one, a ring in it
 * as inside and a frame around it as outside. Of the ways that were tried the best; `benchmarks.boxes` measures it.
 */
export function drawBox(plane, columns, corners) {
  const rows = plane.length / columns;
  const [left, right] = ends(corners.map(([x]) => x));
  const [top, bottom] = ends(corners.map(([, y]) => y));
  const first = !plane.includes(BEFORE);
  for (let y = Math.max(0, top - FRAME); y <= Math.min(rows - 1, bottom + FRAME); y++) {
    for (let x = Math.max(0, left - FRAME); x <= Math.min(columns - 1, right + FRAME); x++) {
      const at = y * columns + x;
      const dx = (2 * x - left - right) / Math.max(1, right - left);
      const dy = (2 * y - top - bottom) / Math.max(1, bottom - top);
      const distance = dx * dx + dy * dy;
      if (x < left || x > right || y < top || y > bottom) {
        plane[at] = OUTSIDE;
      } else if (distance < CENTRE || (distance >= RING[0] && distance <= RING[1])) {
        plane[at] = INSIDE;
      } else if (first && distance <= 1) {
        plane[at] = BEFORE;
      }
    }
  }
}

function ends(values) {
  return [Math.round(Math.min(...values)), Math.round(Math.max(...values))];
}

/** Draw a stroke, a list of points [column, row], as a line of `width` pixels with round ends. */
export function drawStroke(plane, columns, points, width, value) {
  const rows = plane.length / columns;
  const radius = width / 2;
  points.forEach((point, row) => {
    const [x0, y0] = points[Math.max(0, row - 1)];
    const [x1, y1] = point;
    const steps = Math.max(1, Math.ceil(Math.hypot(x1 - x0, y1 - y0)));
    for (let step = 0; step <= steps; step++) {
      const x = x0 + ((x1 - x0) * step) / steps;
      const y = y0 + ((y1 - y0) * step) / steps;
      drawDot(plane, columns, rows, x, y, radius, value);
    }
  });
}

function drawDot(plane, columns, rows, x, y, radius, value) {
  for (let row = Math.max(0, Math.round(y - radius)); row <= Math.min(rows - 1, Math.round(y + radius)); row++) {
    for (let at = Math.max(0, Math.round(x - radius)); at <= Math.min(columns - 1, Math.round(x + radius)); at++) {
      if (Math.hypot(at - x, row - y) <= Math.max(radius, 0.5)) {
        plane[row * columns + at] = value;
      }
    }
  }
}
