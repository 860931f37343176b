// What becomes of the outputs meanwhile: more shards, finished, damaged, removed; and of the viewer itself.
import { showLive } from "./live.js";
import { fetched } from "./source.js";
import { grouped, shardsOf } from "./units.js";

const RUNNING = 1000; // ms between two looks while a run says how far it is
const OFTEN = 2000; // while an output is unfinished
const SELDOM = 5000;

const shape = (outputs) => JSON.stringify(outputs.map(({ name, kind, size, count, maps }) => [name, kind, size, count, maps]));

const isThere = ({ state }) => state.is !== "gone" && state.is !== "awaited";

// What the server says of the outputs, once all of them are there; what is lacking is said meanwhile.
export async function allThere() {
  for (;;) {
    const given = await fetched("outputs.json");
    if (given.outputs.every(isThere)) return given;
    say(given.outputs);
    await new Promise((resolve) => { setTimeout(resolve, OFTEN); });
  }
}

// Look again and again: `changed(output)` is called for each that has more to show.
export function watch(outputs, changed) {
  let versions = outputs.map((output) => output.state.version);
  let missed = 0;
  say(outputs);
  const look = async () => {
    let now = outputs;
    try {
      now = (await fetched("outputs.json")).outputs;
      missed = 0;
      say(now);
      const there = now.every(isThere);
      if (there && shape(now) !== shape(outputs)) location.reload();
      now.forEach((output, index) => {
        if (isThere(output) && output.state.version !== versions[index]) changed({ ...output, index });
      });
      versions = now.map((output, index) => output.state.version || versions[index]);
    } catch {
      missed += 1;
      if (missed > 1) notice([line("The viewer was stopped: start it again, and this page goes on.", "bad")]);
    }
    const unfinished = now.filter((output) => output.state.is === "unfinished");
    const running = unfinished.some(({ state }) => state.live && !state.live.ended);
    setTimeout(look, running && !missed ? RUNNING : unfinished.length || missed ? OFTEN : SELDOM);
  };
  setTimeout(look, OFTEN);
}

function line(text, className = "") {
  return Object.assign(document.createElement("p"), { textContent: text, className });
}

function notice(lines) {
  const element = document.getElementById("notice");
  element.hidden = !lines.length;
  const same = element.textContent === lines.map((one) => one.textContent).join("");
  if (!same) element.replaceChildren(...lines); // what is open stays open
}

// What the page says above the image; nothing of outputs that are finished and whole.
function say(outputs) {
  const lines = [];
  for (const { name, state } of outputs) {
    if (state.is === "gone") lines.push(line(`${name}: ${state.says}`, "bad"));
    if (state.is === "awaited") lines.push(line(`${state.says} yet; it is shown when a run begins it.`));
    if (state.is === "unfinished" && !state.live) {
      const level = state.level === null ? "" : `; its last checkpoint is level ${state.level} of ${state.levels}`;
      lines.push(line(`${name} is unfinished: ${shardsOf(state)}${level}.`));
    }
    if (state.damaged_count) lines.push(damagedList(name, state));
  }
  notice(lines);
  showLive(outputs);
}

function damagedList(name, state) {
  const many = state.damaged_count;
  const details = Object.assign(document.createElement("details"), { className: "bad" });
  const summary = document.createElement("summary");
  summary.textContent = `${name}: ${many === 1 ? "a shard is" : `${grouped(many)} shards are`} damaged, drawn hatched.`;
  const rest = many > state.damaged.length ? [line(`and ${grouped(many - state.damaged.length)} more`)] : [];
  const way = line("slidefield verify names all of them; the same job with --mend makes them anew.");
  details.append(summary, ...state.damaged.map((shard) => line(shard)), ...rest, way);
  return details;
}
