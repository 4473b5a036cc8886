// SPDX-License-Identifier: Apache-2.0
// The tools in hand: ours (clicks, strokes) and OHIF's brush and eraser.
const OURS = {
  click: { inside: true, stroke: false },
  beside: { inside: false, stroke: false },
  stroke: { inside: true, stroke: true },
};
const THEIRS = { brush: 'CircularBrush', eraser: 'CircularEraser', none: 'WindowLevel' };

export const TOOLS = [
  ['click', 'Click on it', 'C'],
  ['beside', 'Click beside it', 'X'],
  ['stroke', 'Stroke', 'D'],
  ['brush', 'Brush', 'B'],
  ['eraser', 'Eraser', 'E'],
  ['none', 'Look', 'V'],
];

export async function setTool(session, name) {
  session.toolName = name;
  session.tool = OURS[name] ?? null;
  if (name === 'brush' || name === 'eraser') {
    await session.prepareBrush();
  }
  if (THEIRS[name]) {
    session.scene.commands.run('setToolActiveToolbar', { toolName: THEIRS[name], toolGroupIds: ['default', 'mpr'] });
  }
  session.changed();
}
