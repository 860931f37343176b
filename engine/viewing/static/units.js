// Numbers for people.

const LEADING = [1, 2, 5];

export const grouped = (number) => Math.round(number).toLocaleString("en").replaceAll(",", "\u202f");

export function lengthText(um) {
  const three = (value) => String(Number(value.toPrecision(3)));
  if (um < 1000) return `${three(um)} µm`;
  return um < 20000 ? `${three(um / 1000)} mm` : `${three(um / 10000)} cm`;
}

// The longest length of 1, 2 or 5 times a power of ten that is at most `most`.
export function roundLength(most) {
  const power = 10 ** Math.floor(Math.log10(most));
  return Math.max(...LEADING.map((n) => n * power).filter((n) => n <= most * 1.000001));
}

// Seconds as m:ss or h:mm:ss.
export function clockText(seconds) {
  const whole = Math.round(seconds);
  const two = (n) => String(n).padStart(2, "0");
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  return hours ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
}

export const memoryText = (bytes) => `${(bytes / 2 ** 30).toFixed(2)} GiB`;

export const shardsOf = ({ shards, of }) => `${grouped(shards)} of ${grouped(of)} shards of the image are there`;

export const regionText = ([y0, y1, x0, x1]) => `${y0}:${y1},${x0}:${x1}`;

// What an image of a set was asked for, of the settings that its images take in turn.
export function caption(output, number) {
  const turn = output.in_turn.length ? output.in_turn[number % output.in_turn.length] : {};
  const settings = Object.entries(turn).map(([name, value]) => `${name} ${value}`);
  return settings.length ? `${number}: ${settings.join(", ")}` : String(number);
}
