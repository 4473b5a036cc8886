// SPDX-License-Identifier: Apache-2.0
// The tools in hand: ours (clicks, strokes, boxes) and OHIF's brush and eraser.
const OURS = {
  click: { inside: true, stroke: false },
  beside: { inside: false, stroke: false },
  stroke: { inside: true, stroke: true },
  box: { inside: true, stroke: true, box: true },
};
const GROUPS = ['default', 'mpr'];
const THEIRS = { brush: 'CircularBrush', eraser: 'CircularEraser', none: 'WindowLevel' };

export const TOOLS = [
  ['click', 'Click on it', 'C'],
  ['beside', 'Click beside it', 'X'],
  ['stroke', 'Stroke', 'D'],
  ['box', 'Box', 'O'],
  ['brush', 'Brush', 'B'],
  ['eraser', 'Eraser', 'E'],
  ['none', 'Look', 'V'],
];

/** Radius of brush and eraser in millimetres. */
export function setRadius(session, radius) {
  session.radius = radius;
  const { setBrushSizeForToolGroup } = window.cornerstoneTools.utilities.segmentation;
  GROUPS.forEach(group => setBrushSizeForToolGroup(group, radius));
}

export async function setTool(session, name) {
  session.toolName = name;
  session.tool = OURS[name] ?? null;
  if (name === 'brush' || name === 'eraser') {
    await session.prepareBrush();
    setRadius(session, session.radius);
  }
  if (THEIRS[name]) {
    session.scene.commands.run('setToolActiveToolbar', { toolName: THEIRS[name], toolGroupIds: GROUPS });
  }
  session.changed();
}
