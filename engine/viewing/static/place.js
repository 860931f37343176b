// The place in the address: #at=Y,X&zoom=Z&map=NAME&opacity=O&image=N&select=Y0:Y1,X0:X1, or #page=P of a set's sheet.

export function read() {
  const given = new URLSearchParams(location.hash.slice(1));
  const number = (name) => (given.has(name) && Number.isFinite(Number(given.get(name))) ? Number(given.get(name)) : null);
  const numbers = (name, count) => {
    const values = (given.get(name) || "").split(/[:,]/).map(Number);
    return values.length === count && values.every(Number.isFinite) ? values : null;
  };
  return {
    at: numbers("at", 2), zoom: number("zoom"), map: given.get("map"), opacity: number("opacity"),
    image: number("image"), page: number("page"), select: numbers("select", 4),
  };
}

export function write(place) {
  const parts = [];
  if (place.image !== null) parts.push(`image=${place.image}`);
  if (place.page) parts.push(`page=${place.page}`);
  if (place.at) parts.push(`at=${place.at.map((n) => Number(n.toFixed(2))).join(",")}`);
  if (place.zoom) parts.push(`zoom=${Number(place.zoom.toPrecision(6))}`);
  if (place.map) parts.push(`map=${place.map}`, `opacity=${place.opacity}`);
  if (place.select) parts.push(`select=${place.select[0]}:${place.select[1]},${place.select[2]}:${place.select[3]}`);
  history.replaceState(null, "", `#${parts.join("&")}`);
}
