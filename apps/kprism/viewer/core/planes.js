// SPDX-License-Identifier: Apache-2.0
// Masks between browser and server (lib/api/ohif/planes.py): gzip of four bytes (length of the JSON), the JSON with the
// slice numbers under "planes", and the planes, one byte a pixel, column fastest.

/** Planes by slice number: Map of k to Uint8Array. Resolves to a Blob. */
export async function pack(header, planes) {
  const text = new TextEncoder().encode(JSON.stringify({ ...header, planes: [...planes.keys()] }));
  const length = new Uint8Array(4);
  new DataView(length.buffer).setUint32(0, text.length, true);
  const stream = new Blob([length, text, ...planes.values()]).stream().pipeThrough(new CompressionStream('gzip'));
  return new Response(stream).blob();
}

/** `{ header, planes }` of a Blob. */
export async function unpack(blob) {
  const stream = blob.stream().pipeThrough(new DecompressionStream('gzip'));
  const content = await new Response(stream).arrayBuffer();
  const length = new DataView(content).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(content, 4, length)));
  const planes = new Map();
  const size = header.planes.length ? (content.byteLength - 4 - length) / header.planes.length : 0;
  header.planes.forEach((k, row) => planes.set(k, new Uint8Array(content, 4 + length + row * size, size)));
  return { header, planes };
}
