// SPDX-License-Identifier: Apache-2.0
// A curve of values from 0 to 1 over rounds, as SVG.
const SVG = 'http://www.w3.org/2000/svg';
const BOX = { left: 36, right: 470, top: 10, bottom: 155 };

function make(tag, looks, text = '') {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(looks)) {
    node.setAttribute(name, value);
  }
  node.textContent = text;
  return node;
}

/** Draw `[[round, value], ...]`. */
export function drawCurve(svg, curve) {
  const rounds = curve.map(([round]) => round);
  const first = Math.min(...rounds);
  const last = Math.max(...rounds);
  const x = round => BOX.left + ((round - first) / Math.max(1, last - first)) * (BOX.right - BOX.left);
  const y = value => BOX.bottom - value * (BOX.bottom - BOX.top);
  const lines = [0, 0.5, 1].flatMap(value => [
    make('line', { x1: BOX.left, x2: BOX.right, y1: y(value), y2: y(value) }),
    make('text', { x: 4, y: y(value) + 4 }, value.toFixed(1)),
  ]);
  const ends = curve.length ? [first, last] : [];
  const numbers = ends.map(round => make('text', { x: x(round) - 4, y: 174 }, String(round)));
  const points = curve.map(([round, value]) => `${x(round)},${y(value)}`).join(' ');
  svg.replaceChildren(...lines, ...numbers, make('polyline', { points }));
}
