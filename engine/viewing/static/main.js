// The page: panes or a contact sheet, the tools above them, the place in the address.
import { Contact } from "./contact.js";
import { onKeys } from "./keys.js";
import { showLegend } from "./legend.js";
import { Pane } from "./pane.js";
import * as address from "./place.js";
import { allThere, watch } from "./state.js";
import { inStep } from "./step.js";
import { caption, grouped, lengthText, regionText } from "./units.js";

const byId = (id) => document.getElementById(id);
const MOVE = 0.25; // of the pane, with an arrow key
let outputs = [];
let panes = [];
let step = null;
let contact = null;
let map = { layer: null, opacity: 0.5, shown: false };
let region = null;
let selecting = false;
let image = null; // number of the image of a set that is shown; null: an image, or the sheet
let said = 0;

function say(text) {
  byId("said").textContent = text;
  clearTimeout(said);
  said = setTimeout(() => { byId("said").textContent = ""; }, 4000);
}

async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // not a secure address, or not allowed
    const field = Object.assign(document.createElement("textarea"), { value: text, className: "away" });
    document.body.append(field);
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    if (!done) return say(`${what} could not be copied`);
  }
  say(`${what} copied`);
}

// -- the place --

function remember() {
  if (!outputs.length) return;
  const over = { map: map.shown ? map.layer : null, opacity: map.opacity };
  if (contact && image === null) return address.write({ image: null, page: contact.page, ...over });
  const pane = step.leader();
  if (pane.ready) address.write({ image, ...pane.place(), ...over, select: region });
}

function restore() {
  const place = address.read();
  if (place.opacity) map.opacity = Math.min(Math.max(place.opacity, 0.05), 1);
  const known = outputs.some((output) => output.maps.includes(place.map));
  setMap({ layer: known ? place.map : map.layer, shown: known });
  if (contact) {
    const asked = place.image !== null && place.image >= 0 && place.image < contact.count && Number.isInteger(place.image);
    if (asked) open(place.image);
    else showSheet(place.page || 1);
    if (!asked) return;
  }
  panes[0].whenReady(() => {
    if (place.at || place.zoom) panes.forEach((pane) => pane.whenReady(() => pane.go(place)));
    choose(place.select && place.select[1] > place.select[0] && place.select[3] > place.select[2] ? place.select : null);
  });
}

// -- what is shown --

function makePanes() {
  panes = outputs.map((output) => new Pane(byId("stage"), output, outputs.length > 1));
  for (const pane of panes) pane.begin();
  step = inStep(panes);
  for (const pane of panes) {
    pane.viewer.addHandler("animation-finish", remember);
    pane.viewer.addHandler("viewport-change", () => { if (pane === step.leader()) where(); });
    pane.selects(() => selecting, (box, done) => choose(box, done));
    pane.element.addEventListener("pointermove", (event) => where(event, pane));
    pane.element.addEventListener("pointerleave", () => where());
    pane.whenReady(where);
  }
}

function setMap(change) {
  map = { ...map, ...change };
  const over = map.shown ? { layer: map.layer, opacity: map.opacity } : null;
  byId("map").setAttribute("aria-pressed", String(map.shown));
  byId("opacity").value = Math.round(100 * map.opacity);
  byId("which").value = map.layer;
  panes.forEach((pane) => pane.whenReady(() => pane.setMap(over)));
  if (contact && image === null && !contact.element.hidden) contact.show(contact.page, over);
  else if (contact) contact.map = over;
  legend();
}

let listed = "";
function legend() {
  const on_sheet = contact && image === null;
  const key = map.shown && !on_sheet ? `${map.layer} ${image} ${outputs.map((output) => output.state.stored)}` : "";
  if (key === listed) return;
  listed = key;
  if (key) showLegend(byId("legend"), byId("legends"), panes, map.layer);
  else byId("legend").hidden = true;
}

function shows(sheet) {
  for (const id of ["stage", "images", "zooms", "marks", "where"]) byId(id).hidden = sheet;
  if (sheet) contact.show(contact.page);
  else contact?.hide();
}

function open(number) {
  image = number;
  shows(false);
  if (!panes.length) makePanes();
  for (const pane of panes) if (pane.image !== number || !pane.ready) pane.show(number);
  byId("previous").disabled = number === 0;
  byId("next").disabled = number === contact.count - 1;
  setMap({});
  entitle();
}

function showSheet(page) {
  image = null;
  contact.page = page;
  choose(null);
  shows(true);
  entitle();
  setMap({});
}

// Another image of the set, `by` images on.
function turn(by) {
  if (!contact || image === null) return false;
  const next = image + by;
  if (next < 0 || next >= contact.count) return false;
  open(next);
  return remember();
}

// -- words --

function entitle() {
  byId("name").textContent = outputs.map((output) => output.name).join(" | ");
  const [height, width] = outputs[0].size;
  const size = `${grouped(height)} × ${grouped(width)} px`;
  const { um } = outputs[0];
  const extent = um ? `, ${lengthText(height * um)} × ${lengthText(width * um)}` : "";
  const count = contact ? `${image === null ? grouped(contact.count) + " images" : `image ${caption(outputs[0], image)}, of ${grouped(contact.count)}`}; ` : "";
  byId("facts").textContent = outputs.length > 1 ? `${count}side by side, in step` : `${count}${size}${extent}`;
  document.title = `${byId("name").textContent} · Slidefield`;
}

// Rows and columns at the pointer; without one, in the middle.
function where(event, pane) {
  const leader = pane || step?.leader();
  if (!leader?.ready) return;
  const box = leader.canvas.getBoundingClientRect();
  const inside = event?.pointerType === "mouse";
  const point = inside ? [event.clientX - box.left, event.clientY - box.top] : [box.width / 2, box.height / 2];
  const [y, x] = leader.pixelAt(new OpenSeadragon.Point(...point)).map((n) => Math.floor(n + 1e-6)); // of what is a whole number but for rounding
  const [height, width] = leader.size();
  const within = y >= 0 && x >= 0 && y < height && x < width;
  const zoom = leader.zoom();
  const percent = `${Number((100 * zoom).toPrecision(zoom < 0.1 ? 2 : 3))} %`;
  byId("where").textContent = `${within ? `row ${grouped(y)}, column ${grouped(x)}` : "outside"} · ${percent}`;
}

function choose(box, done = false) {
  region = box;
  panes.forEach((pane) => pane.whenReady(() => pane.select(box)));
  byId("selection").hidden = !box;
  if (!box) return;
  const [y0, y1, x0, x1] = box;
  const { um } = outputs[0];
  byId("region").value = regionText(box);
  byId("region").title = `${y1 - y0} × ${x1 - x0} px${um ? `, ${lengthText((y1 - y0) * um)} × ${lengthText((x1 - x0) * um)}` : ""}`;
  if (!done) return;
  setSelecting(false);
  remember();
  copy(regionText(box), `${grouped(y1 - y0)} × ${grouped(x1 - x0)} px:`);
}

function setSelecting(on) {
  selecting = on;
  byId("select").setAttribute("aria-pressed", String(on));
  byId("stage").classList.toggle("selecting", on);
  if (on) say("drag over the image");
}

// -- the tools --

const each = (call) => () => { call(step.leader()); };
const viewing = (call) => (shift) => (contact && image === null ? false : call(shift));
const link = () => { remember(); copy(location.href, "address"); };
const toggleMap = () => { if (map.layer) { setMap({ shown: !map.shown }); remember(); } };
const fade = (by) => { if (map.layer) { setMap({ shown: true, opacity: Math.min(Math.max(Number((map.opacity + by).toFixed(2)), 0.05), 1) }); remember(); } };
const back = () => { if (!contact || image === null) return false; showSheet(contact.pageOf(image)); return remember(); };
const move = (y, x) => viewing((shift) => step.leader().moveBy(y * (shift ? 1 : MOVE), x * (shift ? 1 : MOVE)));

function wire() {
  const tools = {
    sheet: back, previous: () => turn(-1), next: () => turn(1),
    in: each((pane) => pane.zoomBy(1.5)), out: each((pane) => pane.zoomBy(1 / 1.5)), home: each((pane) => pane.home()),
    map: toggleMap, select: () => setSelecting(!selecting), link, help: () => byId("keys").showModal(),
    copy: () => copy(byId("region").value, "region"), unselect: () => { choose(null); remember(); },
  };
  for (const [id, call] of Object.entries(tools)) byId(id).addEventListener("click", call);
  byId("opacity").addEventListener("input", () => setMap({ shown: true, opacity: byId("opacity").value / 100 }));
  byId("opacity").addEventListener("change", remember);
  byId("which").addEventListener("change", () => { setMap({ shown: true, layer: byId("which").value }); remember(); });
  onKeys({
    ArrowUp: move(-1, 0), ArrowDown: move(1, 0), ArrowLeft: move(0, -1), ArrowRight: move(0, 1),
    "+": viewing(tools.in), "=": viewing(tools.in), "-": viewing(tools.out), _: viewing(tools.out),
    0: viewing(tools.home), Home: viewing(tools.home), 1: viewing(() => step.leader().go({ zoom: 1 }, false)),
    l: toggleMap, "<": () => fade(-0.1), ",": () => fade(-0.1), ">": () => fade(0.1), ".": () => fade(0.1),
    s: viewing(tools.select), c: link, "[": () => turn(-1), "]": () => turn(1), Backspace: back, "?": tools.help,
    Escape: () => { setSelecting(false); choose(null); remember(); },
  });
  addEventListener("hashchange", restore);
}

async function start() {
  byId("made").textContent = `Drawn by OpenSeadragon ${OpenSeadragon.version.versionStr}.`;
  const given = await allThere();
  outputs = given.outputs.map((output, index) => ({ ...output, index, lossless: given.lossless }));
  if (new Set(outputs.map((output) => output.kind)).size > 1) throw new Error("an image and a set of images cannot be shown side by side");
  const names = [...new Set(outputs.flatMap((output) => output.maps))];
  byId("maps").hidden = !names.length;
  map.layer = names[0] || null;
  byId("which").replaceChildren(...names.map((name) => new Option(name, name)));
  byId("which").hidden = names.length < 2;
  byId("legend").open = innerWidth >= 700;
  byId("stage").classList.toggle("two", outputs.length > 1);
  entitle();
  watch(outputs, (output) => { // what it says takes room, so it comes first
    outputs[output.index].state = output.state;
    panes[output.index]?.refresh(output);
    if (contact && image === null) contact.renew();
    legend();
  });
  if (outputs[0].kind === "set") contact = new Contact(outputs, remember);
  else makePanes();
  wire();
  restore();
  window.slidefield = { panes: () => panes }; // for those who look from the console
}

start().catch((error) => {
  byId("notice").hidden = false;
  byId("notice").append(Object.assign(document.createElement("p"), { textContent: `Nothing to show: ${error.message}`, className: "bad" }));
});
