// What a run under way says of itself, above the image: how far it is, how fast, what its ranks do.
import { clockText, memoryText, shardsOf } from "./units.js";

const make = (tag, className = "", text = "") => Object.assign(document.createElement(tag), { className, textContent: text });
const percent = (share) => `${Math.round(100 * share)} %`;
const panels = new Map(); // by the output's number: what is open stays open, and nothing flickers

function panelOf(index) {
  if (panels.has(index)) return panels.get(index);
  const panel = { element: make("section", "run"), title: make("h2"), bar: make("progress"), facts: make("p", "facts"), note: make("p", "small"), ranks: make("details"), summary: make("summary"), table: make("table") };
  panel.bar.max = 1;
  panel.ranks.append(panel.summary, panel.table);
  panel.element.append(panel.title, panel.bar, panel.facts, panel.note, panel.ranks);
  document.getElementById("live").append(panel.element);
  panels.set(index, panel);
  return panel;
}

const put = (element, text) => { if (element.textContent !== text) element.textContent = text; };

function factsOf(live) {
  const rates = Object.entries(live.rates || {}).map(([unit, rate]) => `${Number(rate.toPrecision(3))} ${unit}`);
  const memory = live.memory ? [`${memoryText(live.memory)} a rank at most`] : [];
  const clocks = live.ended ? [] : [`${clockText(live.left)} to go`, `${clockText(live.gone)} gone`];
  return [percent(live.share), ...clocks, ...rates, ...memory].join(" · ");
}

function noteOf(state, live) {
  const shards = shardsOf(state);
  const estimate = state.estimated ? `; what is not decoded yet is an estimate${live.level === null ? "" : ` after level ${live.level} of ${state.levels}`}` : "";
  return `${shards}${estimate}.`;
}

function trouble(state, live) {
  const goesOn = state.level === null ? "the same command begins again" : `the same command goes on from level ${state.level}`;
  if (live.ended) return `The run was ended here: ${goesOn}.`;
  if (live.silent) return `Nothing was heard of the run for ${clockText(live.silent)}. If it is no more, ${goesOn}.`;
  return "";
}

function rowOf({ rank, busy, speed, memory }) {
  const row = make("tr");
  const head = make("th", "", `rank ${rank}`);
  head.scope = "row";
  const load = make("meter");
  Object.assign(load, { min: 0, max: 1, value: busy });
  load.setAttribute("aria-label", `rank ${rank} is busy`);
  const cell = make("td");
  cell.append(load, ` ${percent(busy)}`);
  row.append(head, cell, make("td", "", speed ? Number(speed.toPrecision(3)).toString() : "–"), make("td", "", memory ? memoryText(memory) : "–"));
  return row;
}

function showRanks(panel, ranks) {
  panel.ranks.hidden = !ranks.length;
  if (!ranks.length) return;
  const loads = ranks.map((rank) => rank.busy);
  const [low, high] = [Math.min(...loads), Math.max(...loads)].map(percent);
  put(panel.summary, `${ranks.length === 1 ? "1 rank" : `${ranks.length} ranks`}, busy ${low === high ? low : `${low} to ${high}`}`);
  const head = make("tr");
  head.append(make("th"), make("td", "", "does not wait"), make("td", "", "evaluations/s"), make("td", "", "memory"));
  panel.table.replaceChildren(head, ...ranks.map(rowOf));
}

// Show what the runs of the outputs say; nothing of those that are finished or say nothing.
export function showLive(outputs) {
  const shown = outputs.filter(({ state }) => state.is === "unfinished" && state.live);
  document.getElementById("live").hidden = !shown.length;
  outputs.forEach((output, index) => {
    if (!shown.includes(output)) {
      panels.get(index)?.element.remove();
      panels.delete(index);
      return;
    }
    const { name, state } = output;
    const { live } = state;
    const panel = panelOf(index);
    put(panel.title, `${outputs.length > 1 ? `${name}: ` : ""}${live.text || "starting"}`);
    panel.bar.value = live.share;
    panel.bar.setAttribute("aria-label", `${name}: share of the job that is done`);
    put(panel.facts, factsOf(live));
    put(panel.note, [trouble(state, live), noteOf(state, live)].filter(Boolean).join(" "));
    panel.note.classList.toggle("bad", Boolean(live.ended || live.silent));
    showRanks(panel, live.ranks || []);
  });
}
