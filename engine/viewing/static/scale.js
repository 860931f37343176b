// A scale bar that follows the zoom: micrometres where the output knows its pixels' size, else pixels.
import { grouped, lengthText, roundLength } from "./units.js";

const SHARE = 0.22; // of the pane's width that it has at most

export function makeScale(element, um) {
  const bar = document.createElement("i");
  const text = document.createElement("span");
  element.append(text, bar);
  return (zoom, width) => {
    const unit = um || 1; // of a pixel
    const length = roundLength((Math.min(width, 900) * SHARE * unit) / zoom);
    bar.style.width = `${((length / unit) * zoom).toFixed(1)}px`;
    text.textContent = um ? lengthText(length) : `${grouped(length)} px`;
    element.setAttribute("aria-label", `The bar is ${text.textContent} long`);
  };
}
