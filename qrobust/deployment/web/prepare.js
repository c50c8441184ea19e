// From a decoded picture to a network's input: the steps of manifest.json, to the bit as infer.py executes them.
//
// An image is { pixels, width, height, channels }: whole grey levels, row by row, channels side by side.

const WEIGHT_BITS = 22; // of Pillow's weights
const TWO = 2 ** WEIGHT_BITS;

const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));

function cubic(x) {
  const [a, at] = [-0.5, Math.abs(x)];
  if (at < 1) return ((a + 2) * at - (a + 3)) * at * at + 1;
  return at < 2 ? (((at - 5) * at + 8) * at - 4) * a : 0;
}

// How far each of Pillow's filters reaches, in pixels of the coarser grid, and its weight at a distance.
const FILTERS = {
  box: [0.5, (x) => (x > -0.5 && x <= 0.5 ? 1 : 0)],
  bilinear: [1, (x) => Math.max(0, 1 - Math.abs(x))],
  bicubic: [2, cubic],
  lanczos: [3, (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0)],
};

// To the nearest whole number, of two to the even one.
export function halfToEven(x) {
  const low = Math.floor(x);
  const rest = x - low;
  return rest > 0.5 || (rest === 0.5 && low % 2 !== 0) ? low + 1 : low;
}

function image(width, height, channels) {
  return { pixels: new Uint8Array(width * height * channels), width, height, channels };
}

// For each target pixel the first source pixel and integer weights.
function weights(source, target, name) {
  const [reach, filter] = FILTERS[name];
  const scale = source / target;
  const coarse = Math.max(1, scale);
  const support = reach * coarse;
  const found = [];
  for (let i = 0; i < target; i++) {
    const centre = (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const end = Math.min(source, Math.trunc(centre + support + 0.5));
    const own = [];
    let sum = 0;
    for (let at = first; at < end; at++) {
      own.push(filter((at - centre + 0.5) * (1 / coarse)));
      sum += own[own.length - 1];
    }
    const shares = own.map((weight) => (sum === 0 ? weight : weight / sum));
    found.push([first, shares.map((share) => Math.trunc(share * TWO + (share < 0 ? -0.5 : 0.5)))]);
  }
  return found;
}

function nearest(source, target) {
  const step = source / target;
  const found = [];
  let at = step * 0.5; // added up, as Pillow does
  for (let i = 0; i < target; i++, at += step) found.push([Math.trunc(at), [TWO]]);
  return found;
}

// One axis: each row (or column) of the result is a weighted sum of those of the source, in whole grey levels.
function along(source, target, name, horizontal) {
  const length = horizontal ? source.width : source.height;
  if (length === target) return source;
  const rules = name === "nearest" ? nearest(length, target) : weights(length, target, name);
  const { channels } = source;
  const result = horizontal ? image(target, source.height, channels) : image(source.width, target, channels);
  const step = horizontal ? channels : source.width * channels;
  const others = horizontal ? source.height : source.width;
  for (let other = 0; other < others; other++) {
    const [from, to] = horizontal
      ? [other * source.width * channels, other * target * channels]
      : [other * channels, other * channels];
    for (let i = 0; i < target; i++) {
      const [first, own] = rules[i];
      for (let channel = 0; channel < channels; channel++) {
        let sum = TWO / 2;
        let at = from + first * step + channel;
        for (let k = 0; k < own.length; k++, at += step) sum += source.pixels[at] * own[k];
        const place = horizontal ? to + i * channels : to + i * source.width * channels;
        result.pixels[place + channel] = Math.min(255, Math.max(0, Math.floor(sum / TWO)));
      }
    }
  }
  return result;
}

// Bilinear between the four nearest pixels, rounded once.
function interpolated(source, width, height) {
  const axis = (from, to) =>
    Array.from({ length: to }, (_, i) => {
      const at = Math.min(from - 1, Math.max(0, (i + 0.5) * (from / to) - 0.5));
      const low = Math.floor(at);
      return [low, Math.min(low + 1, from - 1), at - low];
    });
  const [rows, columns] = [axis(source.height, height), axis(source.width, width)];
  const { pixels, channels } = source;
  const result = image(width, height, channels);
  let place = 0;
  for (const [top, bottom, down] of rows) {
    for (const [left, right, across] of columns) {
      for (let channel = 0; channel < channels; channel++) {
        const value = (row, column) => pixels[(row * source.width + column) * channels + channel];
        const side = (column) => value(top, column) * (1 - down) + value(bottom, column) * down;
        result.pixels[place++] = halfToEven(side(left) * (1 - across) + side(right) * across);
      }
    }
  }
  return result;
}

function resized(source, step) {
  const sides = [source.width, source.height];
  let size = [step.width, step.height];
  if ("shorter_side" in step) {
    size = sides.map((side) => Math.floor((step.shorter_side * side) / Math.min(...sides)));
  } else if ("longer_side" in step) {
    size = sides.map((side) => Math.max(1, halfToEven((side * step.longer_side) / Math.max(...sides))));
  }
  if (!step.antialias && step.filter !== "nearest") return interpolated(source, ...size);
  return along(along(source, size[0], step.filter, true), size[1], step.filter, false);
}

function cut(source, left, top, width, height) {
  const result = image(width, height, source.channels);
  for (let row = 0; row < height; row++) {
    const from = ((top + row) * source.width + left) * source.channels;
    result.pixels.set(source.pixels.subarray(from, from + width * source.channels), row * width * source.channels);
  }
  return result;
}

function padded(source, size, fill) {
  const result = image(size, size, source.channels);
  result.pixels.fill(fill);
  const [left, top] = [source.width, source.height].map((side) => Math.floor((size - side) / 2));
  for (let row = 0; row < source.height; row++) {
    const width = source.width * source.channels;
    const own = source.pixels.subarray(row * width, (row + 1) * width);
    result.pixels.set(own, ((top + row) * size + left) * source.channels);
  }
  return result;
}

function luma(source) {
  const result = image(source.width, source.height, 1);
  for (let i = 0; i < result.pixels.length; i++) {
    const [red, green, blue] = source.pixels.subarray(3 * i, 3 * i + 3);
    result.pixels[i] = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16; // ITU-R 601-2, as Pillow
  }
  return result;
}

// What the network sees of an RGB image, in whole grey levels: all steps but the division.
export function fitted(source, steps) {
  let found = source;
  for (const step of steps) {
    const sides = [found.width, found.height];
    if (step.do === "decode") {
      found = step.mode === "L" ? luma(found) : found;
    } else if (step.do === "limit_aspect") {
      const longest = step.at_most * Math.min(...sides);
      const [left, top] = sides.map((side) => Math.max(0, Math.floor((side - longest) / 2)));
      found = cut(found, left, top, ...sides.map((side) => Math.min(side, longest)));
    } else if (step.do === "resize") {
      found = resized(found, step);
    } else if (step.do === "centre_crop") {
      const [left, top] = sides.map((side) => halfToEven((side - step.size) / 2));
      found = cut(found, left, top, step.size, step.size);
    } else if (step.do === "pad") {
      found = padded(found, step.size, step.fill);
    } else if (step.do !== "divide") {
      throw new Error(`the manifest asks for ${step.do}, which this page does not know`);
    }
  }
  return found;
}

// Float32 numbers of an image, channel by channel, divided as the steps say.
export function planes(source, steps) {
  const by = steps.find((step) => step.do === "divide").by;
  const { pixels, channels } = source;
  const size = source.width * source.height;
  const found = new Float32Array(pixels.length);
  for (let i = 0; i < size; i++) {
    for (let channel = 0; channel < channels; channel++) {
      found[channel * size + i] = pixels[i * channels + channel] / by;
    }
  }
  return found;
}
