// SPDX-License-Identifier: Apache-2.0
// Shows clicks, strokes and boxes over the viewports: filled green on the structure, red beside it.
import { toVoxel } from './cuts.js';

const SVG = 'http://www.w3.org/2000/svg';
const INSIDE = '#36d27c';
const OUTSIDE = '#ff5a5a';

export class Markers {
  #layers = new WeakMap();

  constructor(session) {
    this.session = session;
    session.addEventListener('change', () => this.drawAll());
    session.addEventListener('drawing', () => this.drawAll());
  }

  /** Follow viewports that have appeared. */
  watch() {
    const { IMAGE_RENDERED } = window.cornerstone.Enums.Events;
    for (const { element } of this.session.scene.viewports) {
      if (!this.#layers.has(element)) {
        const layer = document.createElementNS(SVG, 'svg');
        layer.setAttribute('class', 'kprism-marks');
        element.append(layer);
        this.#layers.set(element, layer);
        element.addEventListener(IMAGE_RENDERED, () => this.#draw(element));
      }
    }
  }

  drawAll() {
    for (const { element } of this.session.scene.viewports) {
      this.#draw(element);
    }
  }

  #draw(element) {
    const { scene, case: open, prompts, structure, drawing } = this.session;
    const layer = this.#layers.get(element);
    const viewport = scene.viewports.find(candidate => candidate.element === element);
    if (!layer || !viewport) {
      return;
    }
    const shapes = [];
    for (const { cut, inside, points, box } of open ? prompts.marks(structure) : []) {
      const voxels = (box ? corners(points) : points).map(point => toVoxel(cut, point));
      const at = ([column, row, k]) => scene.place(viewport, open.frames[k].join(' '), [column, row]);
      const places = voxels.map(at).filter(Boolean);
      if (places.length) {
        shapes.push(shape(places, inside));
      }
    }
    if (drawing?.element === element) {
      const { path, inside, box } = drawing;
      shapes.push(shape(box ? corners([path[0], path.at(-1)]) : path, inside));
    }
    layer.replaceChildren(...shapes);
  }
}

/** The outline of the box between two points. */
function corners([[x0, y0], [x1, y1]]) {
  return [
    [x0, y0],
    [x1, y0],
    [x1, y1],
    [x0, y1],
    [x0, y0],
  ];
}

function shape(places, inside) {
  const colour = inside ? INSIDE : OUTSIDE;
  const node = document.createElementNS(SVG, places.length > 1 ? 'polyline' : 'circle');
  const looks =
    places.length > 1
      ? {
          points: places.map(place => place.slice(0, 2).join(',')).join(' '),
          fill: 'none',
          stroke: colour,
          'stroke-width': 4,
        }
      : { cx: places[0][0], cy: places[0][1], r: 5, fill: colour, stroke: 'black', 'stroke-width': 1.5 };
  for (const [name, value] of Object.entries(looks)) {
    node.setAttribute(name, value);
  }
  return node;
}
