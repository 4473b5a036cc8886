// SPDX-License-Identifier: Apache-2.0
// Clicks, strokes and boxes in the viewports while one of our tools is in hand, before OHIF's own tools see them.
// Shift or the right button means "beside the structure".
import { locate } from './cuts.js';

const DRAG = 4; // pixels; less is a click
const DRAWING = /Brush|Eraser|Scissor|RegionSegment|PaintFill|Contour/; // names of OHIF's tools that change label maps

export class Pointer {
  #bound = new WeakSet();
  #stroke = null;

  constructor(session) {
    this.session = session;
  }

  /** Listen in viewports that have appeared. */
  watch() {
    for (const viewport of this.session.scene.viewports) {
      if (!this.#bound.has(viewport.element)) {
        this.#bound.add(viewport.element);
        for (const type of ['mousedown', 'contextmenu', 'dblclick', 'touchstart']) {
          viewport.element.addEventListener(type, event => this.#start(event, viewport.element), { capture: true });
        }
      }
    }
  }

  #start(event, element) {
    const { tool, scene } = this.session;
    if (!tool && !event.button && this.session.cancellable && DRAWING.test(scene.toolIn(element))) {
      this.#refuse(event);
      return;
    }
    if (!tool || event.button === 1) {
      return; // the middle button still pans
    }
    event.stopImmediatePropagation();
    event.preventDefault();
    const viewport = scene.viewports.find(candidate => candidate.element === element);
    if (!viewport || !['mousedown', 'touchstart'].includes(event.type)) {
      return;
    }
    scene.use(viewport); // what OHIF does on a click, which it does not get to see
    const inside = tool.inside !== (event.shiftKey || event.button === 2);
    this.#stroke = { viewport, element, inside, path: [], stroke: tool.stroke, box: tool.box };
    this.#extend(event);
    const move = moved => this.#extend(moved);
    const end = () => {
      for (const type of ['mousemove', 'touchmove']) {
        window.removeEventListener(type, move, true);
      }
      this.#finish();
    };
    for (const type of ['mousemove', 'touchmove']) {
      window.addEventListener(type, move, { capture: true });
    }
    for (const type of ['mouseup', 'touchend']) {
      window.addEventListener(type, end, { capture: true, once: true });
    }
  }

  /** What is drawn into a label map that is being filled would be lost, or stay by half when that is cancelled. */
  #refuse(event) {
    event.stopImmediatePropagation();
    event.preventDefault();
    if (['mousedown', 'touchstart'].includes(event.type)) {
      const message = `${this.session.busy} is not done yet. Wait for it, or cancel it (Esc), to draw.`;
      this.session.scene.notify(message, 'warning');
    }
  }

  #extend(event) {
    const { clientX, clientY } = event.touches?.[0] ?? event;
    const box = this.#stroke.element.getBoundingClientRect();
    this.#stroke.path.push([clientX - box.left, clientY - box.top]);
    this.session.drawing = this.#stroke;
    this.session.dispatchEvent(new Event('drawing'));
  }

  #finish() {
    const { viewport, path, inside, stroke, box } = this.#stroke;
    this.#stroke = null;
    this.session.drawing = null;
    const [x, y] = path[0];
    const dragged = stroke && path.some(([px, py]) => Math.hypot(px - x, py - y) > DRAG);
    const places = (dragged ? path : [path[0]])
      .map(point => this.session.scene.locate(viewport, point))
      .filter(Boolean);
    const axis = this.session.scene.axis(viewport);
    const here = places.filter(place => slice(place, axis) === slice(places[0], axis));
    if (here.length && this.#isAside(here, axis)) {
      const message = 'Nothing is segmented on this image: it is set aside from the others of its series.';
      this.session.scene.notify(message, 'warning');
    } else if (box && here.length > 1) {
      this.session.point({ axis, places: [here[0], here.at(-1)], inside: true, box });
    } else if (here.length) {
      this.session.point({ axis, places: here, inside });
    }
    this.session.dispatchEvent(new Event('drawing'));
  }

  /** Whether places are on an image of the open case that the server has set aside; not if the click opens another. */
  #isAside(places, axis) {
    const { case: shown, scene } = this.session;
    return shown !== null && scene.caseId === shown.id && !locate(shown.frames, axis, places);
  }
}

/** What places on one slice across an axis have in common. */
function slice({ key, column, row }, axis) {
  return [Math.round(column), Math.round(row), key][axis];
}
