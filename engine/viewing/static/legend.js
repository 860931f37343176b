// The labels of the map that is shown: colours, names, shares of the area.
import { legendOf } from "./source.js";
import { caption } from "./units.js";

const make = (tag, text = "", className = "") => Object.assign(document.createElement(tag), { textContent: text, className });

// A row of a legend: the swatch of a label and its name.
export function rowOf(label) {
  const row = make("tr");
  const head = make("th");
  head.scope = "row";
  const color = make("i", "", "swatch");
  if (label.drawn) color.style.background = label.color;
  else color.classList.add("none");
  head.append(color, label.drawn ? label.name : `${label.name} (not drawn)`);
  row.append(head);
  return row;
}

async function fill(part, pane, layer) {
  try {
    const { labels, counted, part: share } = await legendOf(pane.output.index, layer, pane.image);
    const rows = labels.map((label) => {
      const row = rowOf(label);
      row.append(make("td", label.percent < 0.05 ? "< 0.1" : label.percent.toFixed(1)));
      return row;
    });
    const table = make("table");
    const title = make("tr");
    title.append(make("th", layer), make("td", "area, %"));
    table.append(title, ...rows);
    const missing = share < 1 ? ` of the ${(100 * share).toFixed(0)} % of the map that is there` : "";
    part.replaceChildren(table, make("p", `Counted in ${counted}${missing}.`, "small"));
  } catch (error) {
    part.replaceChildren(make("p", `No areas: ${error.message}`, "small"));
  }
}

// Fill the legend for every pane that has the map; call it again when the map or the image changes.
export function showLegend(element, list, panes, layer) {
  const with_map = panes.filter((pane) => pane.output.maps.includes(layer));
  element.hidden = !with_map.length;
  list.replaceChildren();
  for (const pane of with_map) {
    const title = pane.image === null ? pane.output.name : `${pane.output.name}, image ${caption(pane.output, pane.image)}`;
    if (panes.length > 1) list.append(make("h2", title));
    fill(list.appendChild(make("div")), pane, layer);
  }
}
