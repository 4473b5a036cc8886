// SPDX-License-Identifier: Apache-2.0
// Series in which some images have no position in the patient. OHIF computes with the positions of all images as soon
// as one has a position, fails, and shows nothing at all, without a word.
const HANDLER = '@ohif/extension-default.sopClassHandlerModule.stack';

let mended = null;

/**
 * Let OHIF make such a series a stack, in the order of the images' numbers, as it does where none has a position. If it
 * fails at another series, `tell` gets a sentence.
 */
export function mendUnplaced(extensionManager, tell) {
  const handler = extensionManager.getModuleEntry(HANDLER);
  if (!handler || handler === mended) {
    return;
  }
  mended = handler;
  const make = handler.getDisplaySetsFromSeries;
  handler.getDisplaySetsFromSeries = instances => {
    try {
      return withoutPositions(instances, () => make(instances));
    } catch (error) {
      const name = instances[0]?.SeriesDescription || instances[0]?.SeriesInstanceUID;
      tell(`The viewer cannot show the series "${name}": ${error.message}`);
      throw error;
    }
  };
}

/**
 * What `make` returns, called while no image has a position, if one of them has none. A position that is not three
 * numbers is taken away for good: pixels of such an image would be nowhere in its viewport.
 */
function withoutPositions(instances, make) {
  const images = instances.filter(({ NumberOfFrames }) => !(NumberOfFrames > 1)); // frames have positions of their own
  if (images.every(isPlaced)) {
    return make();
  }
  const stated = images.filter(({ ImagePositionPatient }) => ImagePositionPatient);
  const placed = stated.filter(isPlaced).map(image => [image, image.ImagePositionPatient]);
  stated.forEach(image => (image.ImagePositionPatient = undefined));
  try {
    return make();
  } finally {
    placed.forEach(([image, position]) => (image.ImagePositionPatient = position));
  }
}

function isPlaced({ ImagePositionPatient: position }) {
  return position?.length === 3 && [...position].every(value => value !== null && Number.isFinite(Number(value)));
}
