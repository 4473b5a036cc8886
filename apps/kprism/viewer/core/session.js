// SPDX-License-Identifier: Apache-2.0
// One user at work: the open case, the structure in hand, what can be done with it. The panel listens for "change".
import { addressOf } from './address.js';
import { coveredSentence, foundIn } from './answer.js';
import { watchArrival } from './arrival.js';
import { automatic } from './automatic.js';
import { clientId } from './client.js';
import { correct } from './correct.js';
import { IMAGES, locate } from './cuts.js';
import { newColour } from './colours.js';
import { merged } from './edits.js';
import { Drafts, fresh } from './drafts.js';
import { REACHES } from './follow.js';
import { LabelmapOfCase } from './labelmap.js';
import { server } from './server.js';
import { Turns } from './turns.js';

export class Session extends Turns {
  constructor(scene) {
    super();
    this.scene = scene;
    this.drafts = new Drafts();
    this.clientId = clientId();
    Object.assign(this, fresh(null), {
      status: null,
      structure: null,
      references: [],
      protect: true,
      tool: null,
      radius: 10, // of brush and eraser, in millimetres
      reach: Object.keys(REACHES)[0],
      away: false, // in the study list
      arrival: null, // `{ arrived, total, failed }`: images of the case, while the server fetches them from the store
      awaited: null, // what watches them
    });
  }

  failed(error) {
    this.scene.notify(error.message, 'error');
  }

  /** Whether anything is drawn and not submitted, in this case or one that was looked at before. */
  get unsaved() {
    return this.dirty || this.drafts.any;
  }

  /** Open the case that the viewport in use shows: as it was left, else with its submitted label if it has one. */
  open() {
    const id = this.scene.caseId;
    if (!id || this.away || this.case?.id === id) {
      return undefined;
    }
    return this.work('Opening the case', async () => {
      watchArrival(this, id);
      const [found, references] = await Promise.all([server.case(id), server.references()]);
      this.drafts.keep(this);
      const aside = this.drafts.take(id);
      Object.assign(this, { references }, aside ?? fresh(found));
      if (!aside) {
        await this.#show(id, found);
      }
    });
  }

  async #show(id, found) {
    const draft = this.drafts.saved(id);
    const label = draft ?? (found.label && (await server.label(id)));
    if (label) {
      await this.#load(label);
      this.dirty = Boolean(draft);
    }
    const notes = draft ? [] : (found.label?.notes ?? []); // what the label lacks of what was drawn elsewhere
    for (const warning of [...found.warnings, ...notes]) {
      this.scene.notify(warning, 'warning');
    }
  }

  /** The mode is left for the study list. */
  leave() {
    this.cancel();
    this.drafts.save(this);
    Object.assign(this, fresh(null), { away: true, arrival: null, awaited: null });
  }

  /** The mode is entered again. */
  enter() {
    this.away = false;
  }

  async #load({ header, planes }) {
    const labelmap = await this.ready();
    const values = new Map(
      Object.entries(header.names).map(([name, value]) => [value, labelmap.segmentOf(this.style(name))]),
    );
    labelmap.load(new Map([...planes].map(([k, plane]) => [k, merged(labelmap.plane(k), plane, values, false)])));
    this.scene.show(this.case.frames[[...planes.keys()][Math.floor(planes.size / 2)]]);
    this.basedOn = header.version;
    this.structure = Object.keys(header.names)[0] ?? this.structure;
  }

  /** The label map of the case, made when it is first needed. */
  async ready() {
    if (!this.labelmap?.exists) {
      const { id, frames } = this.case;
      const labelmap = await LabelmapOfCase.create(this.scene, frames);
      this.labelmap = labelmap;
      this.scene.onPixels(labelmap.id, () => labelmap.passing || this.#drawn(id));
      this.scene.showPanel(); // OHIF brings its own to the front when a segmentation is made
    }
    return this.labelmap;
  }

  /** Pixels of a case have changed: it has something to submit, and what is under the brush is no automatic answer. */
  #drawn(id) {
    const state = this.case?.id === id ? this : this.drafts.aside(id);
    if (!state) {
      return;
    }
    if (state === this && (this.toolName === 'brush' || this.toolName === 'eraser')) {
      this.automatic.delete(this.structure);
    }
    state.leaving = false;
    if (!state.dirty) {
      state.dirty = true;
      this.changed();
    }
  }

  /** Name and colour of a structure. */
  style(name) {
    const known = this.status?.structures.find(structure => structure.name === name);
    return known ?? { name, colour: newColour(name) };
  }

  /** Names to choose from: those of this case, then the server's. */
  get structures() {
    const here = this.labelmap?.exists ? [...this.labelmap.segments.keys()] : [];
    const names = new Map([...here, this.structure].filter(Boolean).map(name => [name, this.style(name).colour]));
    for (const { name, colour } of this.status?.structures ?? []) {
      names.set(name, colour);
    }
    return [...names].map(([name, colour]) => ({ name, colour }));
  }

  /** Take a structure in hand; a new name makes a new structure. */
  async choose(name) {
    const plain = name.trim().replace(/\s+/g, ' ').slice(0, 64);
    if (!plain) {
      return;
    }
    this.structure = plain;
    if (this.labelmap?.exists) {
      this.labelmap.activate(this.labelmap.segmentOf(this.style(plain)));
    }
    this.changed();
  }

  /** Segment without prompts. One that the user `named` is left as it is by the next automatic answer. */
  segment(what, model, params = {}, named = false) {
    return this.inTurn(what, async () => {
      const { labelmap, result, after } = await automatic(this, model, params, named);
      this.#change(labelmap, after);
      Object.keys(result.label_names).forEach(name => this.automatic[named ? 'delete' : 'add'](name));
      this.answer = result;
      this.scene.notify(foundIn(result));
    });
  }

  semantic = () => this.segment('Segmenting', 'semantic');

  /** Take a structure in hand and segment it, whatever kind of image the weights take this for. */
  async lookFor(name) {
    await this.choose(name);
    return this.segment(`Looking for ${name}`, 'semantic', { structures: [name] }, true);
  }

  inContext() {
    const params = this.chosen.size ? { references: [...this.chosen].join(',') } : {};
    return this.segment('Following the references', 'in_context', params);
  }

  /** A click (one place), a stroke or a box (two corners) on the structure in hand, or beside it, across an axis. */
  point({ axis, places, inside, box }) {
    const { case: shown, structure: name } = this; // by the time that it is its turn these may be others
    const draw = async () => {
      const { cut, points } = locate(shown.frames, shown.volumes > 1 ? IMAGES : axis, places) ?? {};
      if (this.case !== shown || !cut) {
        return; // the click has only brought another series to hand
      }
      const labelmap = await this.ready();
      this.automatic.delete(name);
      const segment = labelmap.segmentOf(this.style(name));
      labelmap.activate(segment);
      const before = this.prompts.snapshot();
      const mark = { structure: name, segment, cut, inside, points, box };
      try {
        const { images, coveredBy } = await correct(this, shown, labelmap, mark);
        if (coveredBy.length) {
          this.scene.notify(coveredSentence(name, coveredBy), 'warning');
        }
        this.#change(labelmap, images, before);
      } catch (error) {
        this.prompts.restore(before);
        throw error;
      }
    };
    return this.inTurn('Correcting', draw, { each: true });
  }

  /** Follow the structure in hand from the slices on which it is drawn to the others. */
  follow() {
    return this.inTurn('Following', async () => {
      const labelmap = await this.ready();
      const structure = this.structure;
      const segment = labelmap.segmentOf(this.style(structure));
      const { after, count, nextSlice } = await this.following.run(this, labelmap, structure, segment);
      this.automatic.delete(structure);
      this.#change(labelmap, after, this.prompts.snapshot(), nextSlice);
      this.scene.notify(`Followed ${structure} to ${count} more ${count === 1 ? 'slice' : 'slices'}.`);
    });
  }

  /** Change planes in one step of the history, together with the prompts that led to it. */
  #change(labelmap, planes, promptsBefore = this.prompts.snapshot(), nextSlice = null) {
    const { prompts } = this;
    Object.assign(this, { answer: null, nextSlice });
    const promptsAfter = prompts.snapshot();
    labelmap.change(planes, undone => {
      prompts.restore(undone ? promptsBefore : promptsAfter);
      this.changed();
    });
  }

  /** Have a segment to draw on before the brush is taken in hand. */
  prepareBrush() {
    return this.inTurn(
      'Preparing the brush',
      async () => {
        const labelmap = await this.ready();
        labelmap.activate(labelmap.segmentOf(this.style(this.structure)));
      },
      { each: true },
    );
  }

  /** Take the last answer back; if one is still coming, that one. */
  undo() {
    if (this.cancellable) {
      this.cancel();
    } else {
      this.scene.commands.run('undo');
    }
  }

  redo() {
    this.scene.commands.run('redo');
  }

  /** Store what is drawn as the case's final label; a second time if somebody else submitted one in between. */
  submit() {
    return this.inTurn('Submitting', async () => {
      const { planes, names } = this.labelmap?.exists ? this.labelmap.content() : {};
      if (!planes?.size) {
        throw new Error('There is nothing to submit yet: segment or draw something first.');
      }
      this.dirty = false; // what is drawn from here on is not in this submission
      try {
        const header = { names, based_on: this.basedOn, replace: this.conflict, client_id: this.clientId };
        const { version } = await server.submit(this.case.id, header, planes);
        Object.assign(this, { basedOn: version, conflict: false, leaving: false });
      } catch (error) {
        this.dirty = true;
        this.conflict = error.status === 409;
        throw error;
      }
      this.references = await server.references();
      this.scene.notify(`Submitted: ${Object.keys(names).join(', ')}.`, 'success');
    });
  }

  /** Open the next case by a strategy. */
  next(strategy) {
    return this.inTurn('Looking for the next case', async () => {
      if (this.unsaved && !this.leaving) {
        this.leaving = true;
        throw new Error(
          'What you have drawn is not submitted. Submit it, or ask for the next case once more to leave it.',
        );
      }
      const { id, study } = await server.next(strategy, { current: this.case.id, client_id: this.clientId });
      if (!id) {
        this.scene.notify('Every case is labelled.', 'success');
        return;
      }
      this.dirty = false;
      this.drafts.clear();
      window.location.assign(addressOf(study, id));
    });
  }
}
