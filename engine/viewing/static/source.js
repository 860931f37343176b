// Where tiles and facts come from. All addresses are relative to the page's, which may begin with a token.

export async function fetched(address) {
  const response = await fetch(address, { cache: "no-cache", credentials: "same-origin" });
  if (!response.ok) throw new Error((await response.text()).trim() || response.statusText);
  return response.json();
}

// The address of a layer, the image or a map, of output `index`; `image` is the number of an image of a set, or null.
function base(index, layer, image) {
  return `${index}/${layer}${image === null ? "" : `/${image}`}`;
}

export const legendOf = (index, layer, image) => fetched(`${base(index, layer, image)}/legend.json`);

// A whole image as one tile: the finest level that is no larger than one.
export function thumbnail(output, layer, image) {
  const level = output.sizes.findIndex(([height, width]) => Math.max(height, width) <= output.tile);
  return `${base(output.index, layer, image)}/${level}/0_0.${extension(output, layer)}${turned(output)}`;
}

// Within a page the browser does not ask again for a picture that it has: after a change they have other addresses.
const turned = (output) => (output.turn ? `?turn=${output.turn}` : "");

const extension = (output, layer) => (layer === "image" && !output.lossless ? "jpg" : "png");

// A layer as OpenSeadragon wants it; its levels count from the coarsest, ours from the finest.
export function tileSource(output, layer, image) {
  const [height, width] = output.size;
  const finest = output.sizes.length - 1;
  const whole = base(output.index, layer, image);
  return {
    width, height, tileSize: output.tile, tileOverlap: 0, minLevel: 0, maxLevel: finest,
    getTileUrl: (level, column, row) => `${whole}/${finest - level}/${row}_${column}.${extension(output, layer)}${turned(output)}`,
    hasTransparency: () => layer !== "image" || output.state.is === "unfinished",
  };
}
