// The images of a set, small, page by page; of two sets each image of one beside that of the other.
import { thumbnail } from "./source.js";
import { caption, grouped } from "./units.js";

const PAGE = 48; // images

export class Contact {
  constructor(outputs, turned) {
    this.outputs = outputs;
    this.count = Math.min(...outputs.map((output) => output.count));
    this.pages = Math.ceil(this.count / PAGE);
    this.page = 1;
    const byId = (id) => document.getElementById(id);
    this.element = byId("contact");
    this.cells = byId("cells");
    this.text = byId("page");
    this.before = byId("before");
    this.after = byId("after");
    for (const [button, step] of [[this.before, -1], [this.after, 1]]) {
      button.addEventListener("click", () => { this.show(this.page + step); turned(); });
    }
  }

  // Show a page, with a map over every image where one is given.
  show(page, map = this.map) {
    this.page = Math.min(Math.max(Math.round(page) || 1, 1), this.pages);
    this.map = map;
    const first = (this.page - 1) * PAGE;
    const last = Math.min(first + PAGE, this.count);
    this.cells.replaceChildren(...Array.from({ length: last - first }, (_, n) => this.cell(first + n)));
    this.text.textContent = `${grouped(first)} to ${grouped(last - 1)} of ${grouped(this.count)}`;
    this.before.disabled = this.page === 1;
    this.after.disabled = this.page === this.pages;
    document.getElementById("pages").hidden = this.pages === 1;
    this.element.hidden = false;
    this.element.scrollTop = 0;
  }

  // Fetch every picture anew, and change it when it is there: what is shown does not go away meanwhile.
  renew() {
    for (const output of this.outputs) output.turn = (output.turn || 0) + 1;
    for (const image of this.cells.querySelectorAll("img")) {
      const next = new Image();
      next.src = image.fetches();
      next.decode().then(() => { image.src = next.src; }, () => {});
    }
  }

  hide() { this.element.hidden = true; }

  pageOf(image) { return Math.floor(image / PAGE) + 1; }

  cell(number) {
    const link = Object.assign(document.createElement("a"), { href: `#image=${number}${this.map ? `&map=${this.map.layer}&opacity=${this.map.opacity}` : ""}` });
    const pictures = document.createElement("span");
    pictures.className = "pictures";
    for (const output of this.outputs) pictures.append(this.picture(output, number));
    const text = Object.assign(document.createElement("span"), { textContent: caption(this.outputs[0], number) });
    link.append(pictures, text);
    return link;
  }

  picture(output, number) {
    const holder = document.createElement("span");
    const layers = ["image", ...(this.map && output.maps.includes(this.map.layer) ? [this.map.layer] : [])];
    for (const layer of layers) {
      const image = new Image();
      image.loading = "lazy";
      image.alt = layer === "image" ? `Image ${number} of ${output.name}` : "";
      [image.height, image.width] = output.size;
      image.fetches = () => thumbnail(output, layer, number);
      image.src = image.fetches();
      if (layer !== "image") image.style.opacity = this.map.opacity;
      holder.append(image);
    }
    return holder;
  }
}
