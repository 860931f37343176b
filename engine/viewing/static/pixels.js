// Pixels of the image on pixels of the screen: between them a browser blurs.

// Lay an element on whole pixels of the screen, within the one that holds it.
export function snap(holder, element) {
  const box = holder.getBoundingClientRect();
  const [up, down] = [Math.ceil, Math.floor].map((round) => (at) => round(at * devicePixelRatio) / devicePixelRatio);
  const [left, top] = [up(box.left - 1e-3), up(box.top - 1e-3)];
  const { style } = element;
  [style.left, style.top] = [`${left - box.left}px`, `${top - box.top}px`];
  [style.width, style.height] = [`${down(box.right + 1e-3) - left}px`, `${down(box.bottom + 1e-3) - top}px`];
}

// Whether a pixel of the image is a whole number of pixels of the screen.
export function isWhole(zoom) {
  const side = zoom * devicePixelRatio;
  return side > 0.5 && Math.abs(side - Math.round(side)) < 1e-6;
}

// How far the image's corner is from a pixel's corner of the screen, in pixels of the screen: [x, y].
export function offset(viewport, item) {
  const corner = viewport.pixelFromPoint(item.imageToViewportCoordinates(0, 0), true).times(devicePixelRatio);
  return [corner.x - Math.round(corner.x), corner.y - Math.round(corner.y)];
}

// Move by that.
export function alignTo(viewport, item) {
  const by = new OpenSeadragon.Point(...offset(viewport, item)).divide(devicePixelRatio);
  if (Math.abs(by.x) + Math.abs(by.y) > 1e-3) viewport.panBy(viewport.deltaPointsFromPixels(by, true), true);
}
