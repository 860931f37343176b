// A region that is dragged out on a pane: rows and columns of whole pixels, within the image.

// `pane` gives pixelAt(point) and size(); `wanted()` says whether a plain drag selects; `chosen(box, done)` is told.
export function makeSelection(viewer, pane, wanted, chosen) {
  let start = null;
  const boxTo = (point) => {
    const [height, width] = pane.size();
    const [y, x] = pane.pixelAt(point);
    const clip = (value, most) => Math.min(Math.max(value, 0), most);
    const side = (a, b, most) => {
      const low = Math.min(Math.floor(clip(Math.min(a, b), most)), most - 1);
      return [low, Math.max(Math.ceil(clip(Math.max(a, b), most)), low + 1)];
    };
    return [...side(start[0], y, height), ...side(start[1], x, width)];
  };
  viewer.addHandler("canvas-press", (event) => {
    const shift = event.originalEvent.shiftKey;
    start = shift || wanted() ? pane.pixelAt(event.position) : null;
  });
  viewer.addHandler("canvas-drag", (event) => {
    if (!start) return;
    event.preventDefaultAction = true;
    chosen(boxTo(event.position), false);
  });
  viewer.addHandler("canvas-drag-end", (event) => {
    if (!start) return;
    event.preventDefaultAction = true;
    chosen(boxTo(event.position), true);
    start = null;
  });
  viewer.addHandler("canvas-release", () => setTimeout(() => { start = null; }));
}
