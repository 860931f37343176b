// A plane without end: what is shown and not known is asked for, and drawn when it is there.
//
// OpenSeadragon wants an image with edges: it gets a square of 2^32 px around a base, a position of the plane, and another
// one when one comes near its edge. Tiles are named by their places on the plane, which never change.
import { onKeys } from "./keys.js";
import { rowOf } from "./legend.js";
import { alignTo, isWhole, offset as distance, snap } from "./pixels.js";
import * as address from "./place.js";
import { makeScale } from "./scale.js";
import { fetched } from "./source.js";
import { grouped } from "./units.js";

const SIDE = 2 ** 32; // px of the square
const STEP = 2 ** 30; // px; the base is a multiple of it
const FARTHEST = 2 ** 52; // px from the origin
const SMALLEST = 2 ** -12; // zooms: screen pixels a pixel
const LARGEST = 32;
const ASKS = 64; // screen pixels of a block from which it is asked for
const OFTEN = 500; // ms between two looks while there is something to wait for
const SELDOM = 2000;
const MOVE = 0.25; // of the pane, with an arrow key

const byId = (id) => document.getElementById(id);
const page = Array.from(crypto.getRandomValues(new Uint8Array(8)), (n) => n.toString(16)).join("");
const pane = document.querySelector(".pane");
const canvas = document.querySelector(".osd");
let plane = null; // what the server says
let viewer = null;
let base = [0, 0]; // y, x
let samples = true;
let items = {}; // of each layer that is drawn: "tiles", the image, and "labels"
let drawn = {}; // the version of the plane that each layer shows
let renewing = {};
let map = { shown: false, opacity: 0.5 };
let working = null; // the element around the region that is sampled
let exact = false; // whether pixels fall on pixels of the screen
let drawScale = () => {};

// -- the square of the plane that OpenSeadragon has --

function source(layer) {
  const { tile, levels, lossless } = plane;
  const ending = layer === "labels" || lossless ? "png" : "jpg";
  const start = base.map((n) => n - SIDE / 2);
  const version = encodeURIComponent(plane.version);
  return {
    width: SIDE, height: SIDE, tileSize: tile, tileOverlap: 0, minLevel: 0, maxLevel: levels - 1,
    getTileUrl: (osd, column, row) => {
      const level = levels - 1 - osd;
      const [y, x] = start.map((n) => n / (tile * 2 ** level));
      return `${layer}/${level}/${y + row}_${x + column}.${ending}?${version}`;
    },
    hasTransparency: () => true,
  };
}

const item = () => items.tiles;
const ready = () => Boolean(viewer && items.tiles);
const wanted = (layer) => layer === "tiles" || (map.shown && plane.labels.length > 0);
const opacity = (layer) => (layer === "tiles" ? 1 : map.opacity);
const zoom = () => item().viewportToImageZoom(viewer.viewport.getZoom(true));
const onSquare = (at) => item().imageToViewportCoordinates(at[1] - base[1] + SIDE / 2, at[0] - base[0] + SIDE / 2);
const onPlane = (point) => {
  const at = item().viewportToImageCoordinates(point);
  return [at.y + base[0] - SIDE / 2, at.x + base[1] - SIDE / 2];
};
const middle = (now = true) => onPlane(viewer.viewport.getCenter(now));
const toward = ([y, x]) => [y, x].map((n) => Math.round(n / STEP) * STEP);
const bounded = (n, most) => Math.min(Math.max(n, -most), most);
const faint = (n) => Math.min(Math.max(Number(n.toFixed(2)), 0.05), 1); // an opacity that shows something

// The box of the plane that is shown: [y0, x0, y1, x1].
function shown() {
  const box = viewer.viewport.getBounds(true);
  const [y0, x0] = onPlane(box.getTopLeft()).map(Math.floor);
  const [y1, x1] = onPlane(box.getBottomRight()).map(Math.ceil);
  return [y0, x0, y1, x1].map((n) => bounded(n, FARTHEST));
}

function limits() {
  const { viewport } = viewer;
  viewport.minZoomLevel = item().imageToViewportZoom(SMALLEST);
  viewport.maxZoomLevel = item().imageToViewportZoom(LARGEST);
}

function go({ at, zoom: asked }, now = true) {
  const place = (at || middle()).map((n) => bounded(n, FARTHEST - SIDE));
  if (toward(place).some((n, axis) => Math.abs(n - base[axis]) >= STEP)) return open({ at: place, zoom: asked || zoom() });
  if (asked) viewer.viewport.zoomTo(item().imageToViewportZoom(bounded(asked, LARGEST)), null, now);
  viewer.viewport.panTo(onSquare(place), now);
  if (now) align();
}

// Show a place on a square around it.
function open(place) {
  base = toward(place.at);
  renewing = {};
  items = {};
  drawn = { tiles: plane.version };
  working = null;
  viewer.addOnceHandler("open", () => {
    items.tiles = viewer.world.getItemAt(0);
    limits();
    go(place);
    follow();
    mark();
    renew();
  });
  viewer.open(source("tiles"));
}

// All that is known; of nothing the origin.
function home() {
  const [y0, x0, y1, x1] = plane.bounds || [0, 0, 2 * plane.block, 2 * plane.block];
  const fits = 0.9 * Math.min(canvas.clientWidth / (x1 - x0), canvas.clientHeight / (y1 - y0));
  return { at: [(y0 + y1) / 2, (x0 + x1) / 2], zoom: Math.min(Math.max(fits, SMALLEST), 1) };
}

function align() {
  if (isWhole(zoom())) alignTo(viewer.viewport, item());
  follow();
}

// After every move: squares for large pixels, the lattice of blocks, the scale.
function follow() {
  if (!ready()) return;
  const now = zoom();
  exact = isWhole(now) && distance(viewer.viewport, item()).every((n) => Math.abs(n) < 1e-3);
  viewer.drawer.setImageSmoothingEnabled(now < 1 - 1e-6);
  drawScale(now, pane.clientWidth);
  let side = plane.block;
  while (side * now < 24) side *= 2;
  const [y, x] = onPlane(viewer.viewport.getBounds(true).getTopLeft());
  const offset = (n) => `${(-(((n % side) + side) % side) * now).toFixed(2)}px`;
  canvas.style.backgroundSize = `${side * now}px ${side * now}px`;
  canvas.style.backgroundPosition = `${offset(x)} ${offset(y)}`;
  const at = middle();
  const percent = `${Number((100 * now).toPrecision(now < 0.1 ? 2 : 3))} %`;
  const place = (n) => grouped(Math.floor(n + 1e-3));
  byId("where").textContent = `row ${place(at[0])}, column ${place(at[1])} · ${percent}`;
}

function settled() {
  if (!ready()) return;
  const at = middle();
  if (at.some((n, axis) => Math.abs(n - base[axis]) > STEP)) open({ at, zoom: zoom() });
  else align();
  remember();
  look();
}

function remember() {
  address.write({ image: null, at: middle(), zoom: zoom(), map: map.shown ? "labels" : null, opacity: map.opacity });
}

// -- what the server is told, and says --

let asking = null; // a look that is under way
let again = 0;

async function look() {
  clearTimeout(again);
  if (asking) return;
  const close = ready() && zoom() * plane.block >= ASKS;
  const box = samples && close && document.visibilityState === "visible" ? shown() : null;
  try {
    asking = fetch("look", { method: "POST", body: JSON.stringify({ page, box }), credentials: "same-origin" });
    const response = await asking;
    if (!response.ok) throw new Error((await response.text()).trim());
    plane = await response.json();
    say(close);
    mark();
    renew();
  } catch (error) {
    notice(error instanceof TypeError ? "The server was stopped: start it again, and this page goes on." : error.message);
  }
  asking = null;
  again = setTimeout(look, plane.now || plane.waiting ? OFTEN : SELDOM);
}

function notice(text) {
  byId("notice").hidden = !text;
  byId("notice").replaceChildren(Object.assign(document.createElement("p"), { textContent: text, className: "bad" }));
}

function say(close) {
  notice(plane.says);
  legend();
  const { now, total, last } = plane;
  const blocks = (n) => `${grouped(n)} block${n === 1 ? "" : "s"}`;
  const waits = plane.waiting ? `${blocks(plane.waiting)} missing here` : "";
  const level = now && (now.levels && now.level < now.levels ? `level ${now.level} of ${now.levels}` : now.level ? "decoding" : "beginning");
  const parts = now ? [`sampling: ${level}, ${now.seconds.toFixed(1)} s`, waits] : [waits];
  if (!samples) parts.unshift("looking only");
  else if (!close) parts.unshift("come nearer to have it sampled");
  byId("going").textContent = parts.filter(Boolean).join("; ");
  const each = total.blocks ? `${blocks(total.blocks)}: ${(total.seconds / total.blocks).toFixed(1)} s and ${grouped(total.windows / total.blocks)} windows each` : "";
  const lately = last ? `the last ${last.waited.toFixed(1)} s after it was asked for, ${last.ratio.toFixed(1)} × its own area` : "";
  const left = total.cancelled ? `${total.cancelled} cancelled` : "";
  byId("cost").textContent = [each, lately, left].filter(Boolean).join("; ");
  byId("cost").title = last ? last.line : "";
}

// A frame around what is sampled now.
function mark() {
  if (!ready()) return;
  const { now } = plane;
  if (working && (!now || working.dataset.region !== String(now.region))) {
    viewer.removeOverlay(working);
    working = null;
  }
  if (!now) return;
  if (!working) {
    working = Object.assign(document.createElement("div"), { className: "working" });
    working.dataset.region = String(now.region);
    working.append(document.createElement("span"));
    const [y0, x0, y1, x1] = now.region;
    const [from, to] = [onSquare([y0, x0]), onSquare([y1, x1])];
    viewer.addOverlay({ element: working, location: new OpenSeadragon.Rect(from.x, from.y, to.x - from.x, to.y - from.y) });
  }
  working.firstChild.textContent = now.levels ? `${now.level} / ${now.levels}` : "…";
}

// The plane has grown: the tiles of each layer are drawn over what is there, once they are whole.
function renew() {
  for (const layer of ["tiles", "labels"]) if (ready() && wanted(layer)) renewLayer(layer);
}

function renewLayer(layer) {
  if (renewing[layer] || drawn[layer] === plane.version) return;
  const version = plane.version;
  const old = items[layer];
  const mine = renewing;
  mine[layer] = true;
  viewer.addTiledImage({
    tileSource: source(layer), index: layer === "tiles" ? 1 : undefined, opacity: 0, preload: true,
    success: ({ item: fresh }) => {
      if (mine !== renewing) return viewer.world.removeItem(fresh); // another square was opened meanwhile
      const whole = (event) => {
        if (!event.fullyLoaded || mine !== renewing) return;
        fresh.removeHandler("fully-loaded-change", whole);
        mine[layer] = false;
        if (old && viewer.world.getIndexOfItem(old) >= 0) viewer.world.removeItem(old);
        if (!wanted(layer)) return viewer.world.removeItem(fresh);
        items[layer] = fresh;
        drawn[layer] = version;
        fresh.setOpacity(opacity(layer));
        return renew();
      };
      return fresh.addHandler("fully-loaded-change", whole);
    },
  });
}

const settledLayer = (layer) => drawn[layer] === plane.version && !renewing[layer] && items[layer].getFullyLoaded();

// -- the labels --

function setMap(change) {
  map = { ...map, ...change };
  byId("map").setAttribute("aria-pressed", String(map.shown));
  byId("opacity").value = Math.round(100 * map.opacity);
  legend();
  if (!ready()) return;
  if (!wanted("labels") && items.labels) {
    viewer.world.removeItem(items.labels);
    delete items.labels;
    delete drawn.labels;
  }
  items.labels?.setOpacity(map.opacity);
  renew();
}

function legend() {
  const coming = "label" in plane.settings || "labels" in plane.settings; // so that the tools keep their places
  byId("maps").hidden = !plane.labels.length && !coming;
  byId("map").disabled = byId("opacity").disabled = !plane.labels.length;
  byId("legend").hidden = !wanted("labels");
  if (byId("legends").rows.length !== plane.labels.length) byId("legends").replaceChildren(...plane.labels.map(rowOf));
}

// -- the tools --

async function link() {
  remember();
  try {
    await navigator.clipboard.writeText(location.href);
    byId("going").textContent = "address copied";
  } catch {
    byId("going").textContent = "the address is in the address bar";
  }
}

function toggle() {
  samples = !samples;
  byId("sample").setAttribute("aria-pressed", String(samples));
  look();
}

function toggleMap() {
  if (!plane.labels.length) return;
  setMap({ shown: !map.shown });
  remember();
}

function fade(by) {
  if (!plane.labels.length) return;
  setMap({ shown: true, opacity: faint(map.opacity + by) });
  remember();
}

function zoomBy(factor) {
  viewer.viewport.zoomBy(factor);
  viewer.viewport.applyConstraints();
}

function moveBy(y, x, shift) {
  const share = shift ? 1 : MOVE;
  const bounds = viewer.viewport.getBounds();
  viewer.viewport.panBy(new OpenSeadragon.Point(x * share * bounds.width, y * share * bounds.height));
}

function wire() {
  const tools = {
    sample: toggle, in: () => zoomBy(1.5), out: () => zoomBy(1 / 1.5), home: () => go(home(), false), link, map: toggleMap,
    help: () => byId("keys").showModal(),
  };
  for (const [id, call] of Object.entries(tools)) byId(id).addEventListener("click", call);
  byId("opacity").addEventListener("input", () => setMap({ shown: true, opacity: byId("opacity").value / 100 }));
  byId("opacity").addEventListener("change", remember);
  const move = (y, x) => (shift) => moveBy(y, x, shift);
  onKeys({
    ArrowUp: move(-1, 0), ArrowDown: move(1, 0), ArrowLeft: move(0, -1), ArrowRight: move(0, 1),
    "+": tools.in, "=": tools.in, "-": tools.out, _: tools.out, 0: tools.home, Home: tools.home,
    1: () => go({ zoom: 1 }, false), s: toggle, l: toggleMap, c: link,
    "<": () => fade(-0.1), ",": () => fade(-0.1), ">": () => fade(0.1), ".": () => fade(0.1), "?": tools.help,
  });
  addEventListener("hashchange", () => {
    const place = address.read();
    if (place.at && ready()) go(place);
    setMap({ shown: place.map !== null, opacity: faint(place.opacity || map.opacity) });
  });
  document.addEventListener("visibilitychange", look);
}

async function start() {
  plane = await fetched("plane.json");
  byId("name").textContent = plane.name;
  const settings = Object.entries(plane.settings).map(([name, value]) => `${name} ${value}`).join(", ");
  byId("facts").textContent = `${plane.model}: ${settings}; ${plane.ranks === 1 ? "1 rank" : `${plane.ranks} ranks`}`;
  document.title = `${plane.name} · Slidefield`;
  drawScale = makeScale(document.querySelector(".scale"), plane.um);
  snap(pane, canvas);
  new ResizeObserver(() => snap(pane, canvas)).observe(pane);
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const given = address.read();
  const known = home();
  const place = { at: given.at || known.at, zoom: given.zoom || known.zoom };
  viewer = OpenSeadragon({
    element: canvas, drawer: "canvas", prefixUrl: "", showNavigationControl: false, keyboardNavEnabled: false,
    defaultZoomLevel: (place.zoom * SIDE) / canvas.clientWidth, minZoomLevel: (SMALLEST * SIDE) / canvas.clientWidth,
    maxZoomLevel: (LARGEST * SIDE) / canvas.clientWidth, animationTime: still ? 0 : 0.35, blendTime: 0, visibilityRatio: 1,
    gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true }, zoomPerScroll: 1.3, maxImageCacheCount: 300,
    imageLoaderLimit: 6, tileRetryMax: 2, tileRetryDelay: 2000, preserveImageSizeOnResize: true, tabIndex: -1, immediateRender: true,
  });
  // OpenSeadragon draws every tile a pixel larger, against seams; where pixels fall on pixels there are none.
  viewer.drawer.minimumOverlapRequired = () => !exact;
  viewer.addHandler("animation-finish", settled);
  viewer.addHandler("viewport-change", follow);
  viewer.addHandler("resize", () => { if (ready()) { limits(); follow(); } });
  byId("legend").open = innerWidth >= 700;
  setMap({ shown: given.map !== null, opacity: faint(given.opacity || map.opacity) });
  open(place);
  wire();
  window.slidefield = { // for those who look from the console
    go, middle, zoom, plane: () => plane,
    settled: () => ready() && ["tiles", "labels"].filter(wanted).every(settledLayer) && !viewer.world.needsDraw(),
  };
  viewer.addOnceHandler("open", () => look());
}

start().catch((error) => notice(`Nothing to show: ${error.message}`));
