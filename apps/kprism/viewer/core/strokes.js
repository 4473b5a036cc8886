// SPDX-License-Identifier: Apache-2.0
// Clicks and strokes as pixels of a plane, for the scribbles model.
export const BEFORE = 1;
export const INSIDE = 2;
export const OUTSIDE = 3;

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
