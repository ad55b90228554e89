"use strict";
/* Weights in few bits, as in part 2 of lesson 0 and in minilora's nf4.py and double_quant.py.
   Each operation is rounded to float32 by Math.fround, so that the results have the same bits. */

const f32 = Math.fround;
const NF4 = [
  -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
  -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
  0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
  0.7229568362236023, 1.0,
];
const VALUES = {
  NF4: NF4,
  // the numbers -7 to 7 over 7, at the place of their four bits; -8 is not used
  int4: [...Array(8).keys(), null, -7, -6, -5, -4, -3, -2, -1].map((q) => q && q / 7),
  "2 bits": [-1, -1 / 3, 1 / 3, 1],
};
const TINY = f32(1e-38); // replaces an absmax of 0

/* The codes by rising value, and the midpoints between neighbouring values. */
function makeCode(values) {
  const rounded = values.map((v) => (v === null ? null : f32(v)));
  const order = [...rounded.keys()].filter((i) => rounded[i] !== null);
  order.sort((a, b) => rounded[a] - rounded[b]);
  const midpoints = order.slice(1).map((c, i) => f32(f32(rounded[order[i]] + rounded[c]) / 2));
  return { values: rounded, order, midpoints };
}

const CODES = Object.fromEntries(Object.entries(VALUES).map(([name, v]) => [name, makeCode(v)]));

/* The 256 values for the absmax: 0, 1, and the midpoints of 2ⁱ steps from 0.1 to 1, times 10ⁱ⁻⁶. */
function dynamicMap() {
  const values = [0, 1];
  const low = f32(0.1);
  const width = f32(1 - low);
  for (let i = 0; i < 7; i++) {
    const edges = [];
    for (let n = 0; n <= 2 ** i; n++) {
      const k = n / 2 ** i;
      edges.push(f32(k < 0.5 ? low + width * k : 1 - width * (1 - k)));
    }
    for (let n = 0; n < 2 ** i; n++) {
      const midpoint = f32(f32(10 ** (i - 6)) * f32(f32(edges[n] + edges[n + 1]) / 2));
      values.push(midpoint, -midpoint);
    }
  }
  return values.sort((a, b) => a - b);
}

const DYNAMIC = makeCode(dynamicMap());

/* The index of the nearest value, by the midpoints between the values; at a tie, the lower one. */
function nearest(x, midpoints) {
  let low = 0, high = midpoints.length; // the number of midpoints below x lies between the two
  while (low < high) {
    const middle = (low + high) >> 1;
    if (midpoints[middle] < x) low = middle + 1;
    else high = middle;
  }
  return low;
}

/* Quantize w in blocks: {name, codes, absmax}, one code per number and one absmax per block. */
function quantize(w, name, blockSize = 64) {
  const { order, midpoints } = CODES[name];
  const codes = new Uint8Array(w.length);
  const absmax = new Float32Array(w.length / blockSize);
  for (let start = 0, block = 0; start < w.length; start += blockSize, block++) {
    for (let i = start; i < start + blockSize; i++) {
      absmax[block] = Math.max(absmax[block], Math.abs(w[i]));
    }
    const inverse = f32(1 / Math.max(absmax[block], TINY));
    // code = argminᵢ |valueᵢ − w/absmax|   (QLoRA, Sec. 3)
    for (let i = start; i < start + blockSize; i++) {
      codes[i] = order[nearest(f32(w[i] * inverse), midpoints)];
    }
  }
  return { name, codes, absmax };
}

/* ŵ = value[code]·absmax */
function dequantize({ name, codes, absmax, second }) {
  const { values } = CODES[name];
  const scales = second ? doubleDequantize(second) : absmax;
  const blockSize = codes.length / scales.length;
  return Float32Array.from(codes, (code, i) => values[code] * scales[Math.floor(i / blockSize)]);
}

/* Quantize the absmax to eight bits each: {codes, nestedAbsmax, offset}. */
function doubleQuantize(absmax) {
  const offset = mean(absmax);
  const differences = absmax.map((a) => a - offset);
  const codes = new Uint8Array(absmax.length);
  const nestedAbsmax = new Float32Array(Math.ceil(absmax.length / 256));
  nestedAbsmax.forEach((_, block) => {
    const part = differences.subarray(256 * block, 256 * (block + 1));
    const nested = (nestedAbsmax[block] = Math.max(...part.map(Math.abs)));
    const inverse = f32(1 / nested);
    part.forEach((d, i) => {
      // in a block of zeros, 0·∞ is NaN, which bitsandbytes turns into -1
      const x = nested ? Math.min(Math.max(f32(d * inverse), -1), 1) : -1;
      // [-1, 1] → 0, 1, …, 65535 → [-1, 1], as in bitsandbytes
      const step = Math.floor(f32(f32(f32(f32(x + 1) * 0.5) * 65535) + 0.5));
      const rounded = f32(f32(f32(step * 2) / 65535) - 1);
      codes[256 * block + i] = nearest(rounded, DYNAMIC.midpoints);
    });
  });
  return { codes, nestedAbsmax, offset };
}

function doubleDequantize({ codes, nestedAbsmax, offset }) {
  return Float32Array.from(codes, (code, i) =>
    f32(DYNAMIC.values[code] * nestedAbsmax[i >> 8]) + offset);
}

/* The mean in the order of additions of torch, for at most 512 numbers: see double_quant.mean. */
function mean(x) {
  const add = (numbers, start = 0) => numbers.reduce((a, b) => f32(a + b), start);
  const width = x.length >= 8 ? 8 : 1;
  const vectors = Math.floor(x.length / width);
  const fours = vectors - (vectors % 4);
  const total = [];
  for (let j = 0; j < width; j++) {
    const column = [...Array(vectors).keys()].map((v) => x[width * v + j]);
    const sums = [0, 1, 2, 3].map((s) => add(column.slice(0, fours).filter((_, v) => v % 4 === s)));
    sums[0] = add(column.slice(fours), sums[0]);
    total.push(add(sums));
  }
  return f32(add(total, add(x.slice(width * vectors))) / x.length);
}
