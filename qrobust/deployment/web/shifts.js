// Fog, noise and darkness as qrobust makes them, of whole grey levels; random numbers are this page's own.

// Strengths of severities 1 to 5: thickness and decay of haze, for small images and others.
const FOG = {
  small: [[0.2, 3], [0.5, 3], [0.75, 2.5], [1, 2], [1.5, 1.75]],
  large: [[1.5, 2], [2, 2], [2.5, 1.7], [2.5, 1.5], [3, 1.4]],
};
// Standard deviation, of 1.
const NOISE = {
  small: [[0.04], [0.06], [0.08], [0.09], [0.1]],
  large: [[0.08], [0.12], [0.18], [0.26], [0.38]],
};
// Exposure, and photons at what is white then.
const DARKNESS = [[0.6, 400], [0.45, 200], [0.3, 100], [0.2, 50], [0.12, 25]];
const SMALL = 64; // px
const SEED = 1; // the same haze and grain wherever a slider stands

// Numbers in [0, 1): Marsaglia, "Xorshift RNGs", 2003.
function uniform(seed) {
  let state = seed * 0x9e3779b1;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) / 2 ** 32;
  };
}

const normal = (random) => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());

function poisson(mean, random) {
  if (mean > 30) return Math.max(0, Math.round(mean + Math.sqrt(mean) * normal(random)));
  const limit = Math.exp(-mean);
  let count = 0;
  for (let product = random(); product > limit; product *= random()) count++;
  return count;
}

// Numbers of a severity from 0 to 5; between two, and from none to the first, in proportion.
function strength(table, severity, none) {
  const rows = [none, ...table];
  const low = Math.min(Math.floor(severity), rows.length - 2);
  return rows[low].map((value, i) => value + (rows[low + 1][i] - value) * (severity - low));
}

// Diamond-square heights in [0, 1], row by row; the side is a power of two.
function haze(size, decay, random) {
  let heights = new Float64Array(1);
  let spread = 100 ** 2;
  for (let side = 1; side < size; side *= 2, spread /= decay ** 2) {
    const wrapped = (row, column) => ((row + side) % side) * side + ((column + side) % side);
    const jitter = () => (2 * random() - 1) * spread;
    const cells = side * side;
    const across = heights.map((own, i) => own + heights[wrapped(Math.floor(i / side), (i % side) + 1)]);
    const at = (field, i, down, right) => field[wrapped(Math.floor(i / side) + down, (i % side) + right)];
    const centre = across.map((own, i) => jitter() + (own + at(across, i, 1, 0)) / 4);
    const top = across.map((own, i) => jitter() + (centre[i] + at(centre, i, -1, 0) + own) / 4);
    const left = across.map((own, i) => jitter() + (centre[i] + at(centre, i, 0, -1) + own) / 4);
    const finer = new Float64Array(4 * cells);
    for (let i = 0; i < cells; i++) {
      const place = 4 * side * Math.floor(i / side) + 2 * (i % side);
      finer[place] = heights[i];
      finer[place + 1] = top[i];
      finer[place + 2 * side] = left[i];
      finer[place + 2 * side + 1] = centre[i];
    }
    heights = finer;
  }
  const least = heights.reduce((a, b) => Math.min(a, b));
  const most = heights.reduce((a, b) => Math.max(a, b));
  return heights.map((height) => (height - least) / (most - least || 1));
}

// Values in [0, 1] of an image, side by side as its pixels are.
function fogged(values, source, [thickness, decay]) {
  const size = 2 ** Math.ceil(Math.log2(Math.max(source.width, source.height)));
  const field = haze(size, decay, uniform(SEED));
  const brightest = values.reduce((a, b) => Math.max(a, b), 0);
  return values.map((value, i) => {
    const pixel = Math.floor(i / source.channels);
    const height = field[Math.floor(pixel / source.width) * size + (pixel % source.width)];
    return ((value + thickness * height) * brightest) / (brightest + thickness);
  });
}

// An image under fog, then darkness, then noise, each of a severity from 0 (none) to 5.
export function shifted(source, { fog, noise, darkness }) {
  const kind = Math.max(source.width, source.height) < SMALL ? "small" : "large";
  let values = Float64Array.from(source.pixels, (level) => level / 255);
  if (fog > 0) values = fogged(values, source, strength(FOG[kind], fog, [0, FOG[kind][0][1]]));
  if (darkness > 0) {
    const [exposure, photons] = strength(DARKNESS, darkness, [1, 2 * DARKNESS[0][1]]);
    const random = uniform(SEED + 1);
    values = values.map((value) => (poisson(value * photons, random) * exposure) / photons);
  }
  if (noise > 0) {
    const [sigma] = strength(NOISE[kind], noise, [0]);
    const random = uniform(SEED + 2);
    values = values.map((value) => value + sigma * normal(random));
  }
  const pixels = Uint8Array.from(values, (value) => Math.round(255 * Math.min(1, Math.max(0, value))));
  return { ...source, pixels };
}
