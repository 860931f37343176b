// One output in OpenSeadragon: its image, a map over it, a minimap, a scale bar, a selected region.
import { alignTo, isWhole, offset, snap } from "./pixels.js";
import { makeScale } from "./scale.js";
import { makeSelection } from "./selection.js";
import { tileSource } from "./source.js";
import { caption } from "./units.js";

const CRISP = 1; // screen pixels a pixel from which pixels are drawn as squares

export class Pane {
  constructor(stage, output, titled) {
    this.output = output;
    this.image = output.kind === "set" ? 0 : null;
    this.map = null; // {layer, opacity} of what lies over the image
    this.overlay = null; // the map's TiledImage
    this.region = null; // [y0, y1, x0, x1]
    this.box = null; // its element
    this.fetching = 0; // TiledImages that are fetched anew
    this.again = null; // the output, where it changed meanwhile
    this.stored = output.state.stored; // shards that the map was drawn with
    this.whole = false; // whether all of the image is shown, as `home` does
    this.seen = null; // the size of the pane at that time
    this.extent = null; // the element of the frame around an unfinished image
    this.element = document.createElement("section");
    this.element.className = "pane";
    this.element.setAttribute("aria-label", output.name);
    const part = (name) => this.element.appendChild(Object.assign(document.createElement("div"), { className: name }));
    this.canvas = part("osd");
    this.title = titled ? part("name") : null;
    const scale = part("scale");
    scale.setAttribute("role", "img");
    this.drawScale = makeScale(scale, output.um);
    stage.append(this.element);
    this.entitle();
  }

  // Once all panes have their places: the minimap is as large as the pane has it.
  begin() {
    snap(this.element, this.canvas);
    new ResizeObserver(() => snap(this.element, this.canvas)).observe(this.element);
    this.viewer = this.makeViewer();
  }

  makeViewer() {
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const small = innerWidth < 700;
    const viewer = OpenSeadragon({
      element: this.canvas, drawer: "canvas", prefixUrl: "", showNavigationControl: false, keyboardNavEnabled: false,
      showNavigator: true, navigatorPosition: "BOTTOM_RIGHT", navigatorSizeRatio: small ? 0.2 : 0.16, navigatorAutoFade: false,
      tileSources: tileSource(this.output, "image", this.image),
      animationTime: still ? 0 : 0.35, blendTime: 0, minZoomImageRatio: 0.7, maxZoomPixelRatio: 32, visibilityRatio: 0.4,
      gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true }, zoomPerScroll: 1.3, maxImageCacheCount: 300,
      imageLoaderLimit: 6, tileRetryMax: 2, tileRetryDelay: 2000, preserveImageSizeOnResize: true, tabIndex: -1,
    });
    viewer.addOnceHandler("tile-drawn", () => performance.mark("first-tile"));
    viewer.addOnceHandler("open", () => {
      const marked = (event) => { if (event.fullyLoaded) performance.mark("sharp"); };
      viewer.world.getItemAt(0).addHandler("fully-loaded-change", marked);
    });
    // OpenSeadragon draws every tile a pixel larger, against seams; where pixels fall on pixels there are none.
    viewer.drawer.minimumOverlapRequired = () => !this.exact;
    viewer.addHandler("animation-finish", () => { if (this.ready) this.align(); });
    viewer.addHandler("viewport-change", () => { this.stayWhole(); this.follow(); });
    viewer.addHandler("open", () => { this.follow(); this.outline(); });
    viewer.addHandler("resize", () => this.follow());
    return viewer;
  }

  // Where the whole image is shown and the pane becomes larger or smaller, the whole image is shown again.
  stayWhole() {
    if (!this.ready) return;
    const { viewport } = this.viewer;
    const size = viewport.getContainerSize();
    const resized = this.seen !== null && !this.seen.equals(size);
    this.seen = size;
    if (!resized) {
      const off = viewport.getCenter().minus(viewport.getHomeBounds().getCenter());
      const near = Math.max(Math.abs(off.x), Math.abs(off.y)) * size.x * viewport.getZoom() < 1; // screen pixel
      this.whole = near && Math.abs(viewport.getZoom() / viewport.getHomeZoom() - 1) < 1e-3;
    } else if (this.whole) viewport.goHome(true);
  }

  // After every move: pixels are squares where they are large, and smooth where they are small.
  follow() {
    if (!this.ready) return;
    const zoom = this.zoom();
    this.exact = isWhole(zoom) && offset(this.viewer.viewport, this.item).every((n) => Math.abs(n) < 1e-3);
    this.viewer.drawer.setImageSmoothingEnabled(zoom < CRISP - 1e-6);
    this.drawScale(zoom, this.element.clientWidth);
  }

  // At a zoom of whole pixels, move by less than one so that pixels fall on pixels.
  align() {
    if (isWhole(this.zoom())) alignTo(this.viewer.viewport, this.item);
    this.follow();
  }

  entitle() {
    const name = this.image === null ? this.output.name : `${this.output.name}, image ${caption(this.output, this.image)}`;
    if (this.title) this.title.textContent = name;
    this.element.setAttribute("aria-label", name);
  }

  get ready() { return this.viewer.world.getItemCount() > 0; }
  get item() { return this.viewer.world.getItemAt(0); }
  size() { return this.output.size; }

  // Whether everything is drawn that is to be drawn here, and in the minimap.
  settled() {
    return [this.viewer.world, this.viewer.navigator.world].every((world) => {
      const items = Array.from({ length: world.getItemCount() }, (_, n) => world.getItemAt(n));
      return items.length === (this.map ? 2 : 1) && items.every((item) => item.getFullyLoaded()) && !world.needsDraw();
    });
  }

  whenReady(call) {
    if (this.ready) call();
    else this.viewer.addOnceHandler("open", call);
  }

  // -- where --

  zoom() { return this.item.viewportToImageZoom(this.viewer.viewport.getZoom(true)); }

  pixelAt(point) {
    const at = this.item.viewportToImageCoordinates(this.viewer.viewport.pointFromPixel(point, true));
    return [at.y, at.x];
  }

  place() {
    const at = this.item.viewportToImageCoordinates(this.viewer.viewport.getCenter(true));
    return { at: [at.y, at.x], zoom: this.zoom() };
  }

  go({ at, zoom }, now = true) {
    const { viewport } = this.viewer;
    if (zoom) viewport.zoomTo(this.item.imageToViewportZoom(zoom), null, now);
    if (at) viewport.panTo(this.item.imageToViewportCoordinates(at[1], at[0]), now);
    if (!now) return;
    this.align();
  }

  home() { this.viewer.viewport.goHome(); }

  zoomBy(factor) {
    this.viewer.viewport.zoomBy(factor);
    this.viewer.viewport.applyConstraints();
  }

  moveBy(y, x) { // in shares of the pane
    const bounds = this.viewer.viewport.getBounds();
    this.viewer.viewport.panBy(new OpenSeadragon.Point(x * bounds.width, y * bounds.height));
    this.viewer.viewport.applyConstraints();
  }

  // -- what --

  // Show another image of the set at the same place.
  show(image) {
    const place = this.ready ? this.place() : null;
    this.image = image;
    this.entitle();
    this.overlay = null;
    this.fetching = 0;
    this.viewer.addOnceHandler("open", () => {
      if (place) this.go(place);
      this.setMap(this.map);
      this.select(this.region);
    });
    this.viewer.open(tileSource(this.output, "image", image));
  }

  setMap(map) {
    this.map = map && this.output.maps.includes(map.layer) ? map : null;
    if (this.overlay && (!this.map || this.overlay.layer !== this.map.layer)) {
      if (this.overlay.item) this.viewer.world.removeItem(this.overlay.item);
      this.overlay.gone = true;
      this.overlay = null;
    }
    if (!this.map) return;
    if (this.overlay) {
      this.overlay.item?.setOpacity(this.map.opacity);
      return;
    }
    const overlay = { layer: this.map.layer, item: null, gone: false };
    this.overlay = overlay;
    this.viewer.addTiledImage({
      tileSource: tileSource(this.output, this.map.layer, this.image), opacity: this.map.opacity,
      success: ({ item }) => {
        if (overlay.gone) this.viewer.world.removeItem(item);
        overlay.item = item;
        item.setOpacity(this.map?.opacity ?? 0);
      },
    });
  }

  // Where an unfinished image will be.
  outline() {
    if (this.extent) this.viewer.removeOverlay(this.extent);
    this.extent = null;
    if (this.output.state.is !== "unfinished") return;
    this.extent = Object.assign(document.createElement("div"), { className: "extent" });
    this.viewer.addOverlay({ element: this.extent, location: this.item.getBounds() });
  }

  // The output has more to show than before: everything is fetched anew, and drawn over what is there until it is whole.
  refresh(output) {
    this.output.state = output.state;
    if (!this.ready || this.fetching > 0) {
      this.again = output;
      return;
    }
    this.output.turn = (this.output.turn || 0) + 1;
    this.outline();
    this.renew(this.item, "image", 1, () => {});
    const { overlay } = this;
    if (overlay?.item && this.stored !== output.state.stored) this.renew(overlay.item, overlay.layer, this.map.opacity, (item) => { overlay.item = item; });
    this.stored = output.state.stored;
  }

  // Put a new TiledImage in the place of an old one, once it is whole: its coarse tiles would cover sharp ones.
  renew(old, layer, opacity, renewed) {
    const { world } = this.viewer;
    this.fetching += 1;
    const swap = (item) => {
      if (world.getIndexOfItem(old) >= 0) world.removeItem(old);
      renewed(item);
      this.fetching -= 1;
      const { again } = this;
      if (this.fetching || !again) return;
      this.again = null;
      this.refresh(again);
    };
    this.viewer.addTiledImage({
      tileSource: tileSource(this.output, layer, this.image), index: world.getIndexOfItem(old) + 1, opacity: 0, preload: true,
      success: ({ item }) => {
        const whole = (event) => {
          if (!event.fullyLoaded) return;
          item.removeHandler("fully-loaded-change", whole);
          item.setOpacity(opacity);
          swap(item);
        };
        item.addHandler("fully-loaded-change", whole);
      },
    });
  }

  // -- the region --

  selects(wanted, chosen) { makeSelection(this.viewer, this, wanted, chosen); }

  select(box) {
    if (this.box) this.viewer.removeOverlay(this.box);
    this.region = box;
    this.box = null;
    if (!box) return;
    const [y0, y1, x0, x1] = box;
    this.box = Object.assign(document.createElement("div"), { className: "region" });
    const location = this.item.imageToViewportRectangle(x0, y0, x1 - x0, y1 - y0);
    this.viewer.addOverlay({ element: this.box, location });
  }
}
