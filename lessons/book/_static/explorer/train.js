"use strict";
/* Training in the page: parts 5 and 6 of lesson 0, with rows that the reader writes. */

const [BETA1, BETA2, EPS] = [0.9, 0.999, 1e-8];
const HELD_OUT = 8; // rows that are never trained on

/* A generator of numbers from 0 to 1 with a seed, so that a link shows the same run (mulberry32). */
function makeRandom(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

// 5. The data. A line is "prompt → answer". A word in braces, such as {name}, is drawn anew.

const BRACES = /\{(\w*)\}/g;
const wordsOf = ([prompt, answer]) =>
  [...new Set([...`${prompt} ${answer}`.matchAll(BRACES)].map((match) => match[1]))];

/* Read the lines of the reader's rows; throws an Error with a sentence for one that is wrong. */
function readRows(text) {
  const lines = text.split("\n").map((line, i) => [line.trim(), i + 1]).filter(([line]) => line);
  if (!lines.length) throw new Error("There are no rows: write “prompt → answer”, one per line.");
  return lines.map(([line, number]) => {
    const parts = line.split(/→|->/).map((part) => part.trim());
    const row = [parts[0], ` ${parts[1]}`];
    if (parts.length !== 2 || !parts[0] || !parts[1]) {
      throw new Error(`Line ${number} is not “prompt → answer”: write one arrow (→ or ->).`);
    }
    const unknown = wordsOf(row).find((word) => !(word in DATA.words));
    if (unknown !== undefined) {
      const known = Object.keys(DATA.words).map((word) => `{${word}}`).join(", ");
      throw new Error(`Line ${number} has {${unknown}}: the words that are drawn are ${known}.`);
    }
    const other = [...parts.join("")].find((letter) => letter < " " || letter > "~");
    if (other) {
      throw new Error(`Line ${number} has “${other}”: the model knows English letters only.`);
    }
    if (line.length > 160) throw new Error(`Line ${number} is longer than 160 characters.`);
    return row;
  });
}

/* Draw a row from one of the lines. */
function draw(lines, random) {
  const choose = (list) => list[Math.floor(random() * list.length)];
  const line = choose(lines);
  const words = Object.fromEntries(wordsOf(line).map((word) => [word, choose(DATA.words[word])]));
  return line.map((part) => part.replace(BRACES, (_, word) => words[word]));
}

/* How many rows the lines can give. */
function countRows(lines) {
  const ways = (line) => wordsOf(line).reduce((n, word) => n * DATA.words[word].length, 1);
  return lines.reduce((n, line) => n + ways(line), 0);
}

// 6. Training with AdamW

/* Start a run: the factors, both averages, and the rows that are held out.

   settings: {rows, rank, alpha, rate, bits, paths, zero, seed, batch, steps, warmup, maxNorm} */
function startTraining(settings) {
  const random = makeRandom(settings.seed);
  const lines = readRows(settings.rows);
  const drawn = lines.filter((line) => wordsOf(line).length);
  const n = drawn.length ? Math.min(HELD_OUT, Math.floor(countRows(drawn) / 4)) : 0;
  const heldOut = new Map();
  while (heldOut.size < n) {
    const row = draw(drawn, random);
    heldOut.set(row.join(""), row);
  }
  const factors = initLora(settings, random);
  const averages = () =>
    Object.fromEntries(Object.entries(factors).map(([name, w]) => [name, zeros(w.data)]));
  return { settings, random, lines, heldOut, factors, m: averages(), v: averages(), step: 0 };
}

/* A is uniform in ±1/√in, and B is zero (or both are, to show that nothing is learned then). */
function initLora({ paths, rank, zero }, random) {
  const factors = {};
  for (const path of paths) {
    const [outputs, inputs] = denseBase[path].shape;
    const limit = zero ? 0 : 1 / Math.sqrt(inputs);
    const A = Float32Array.from({ length: rank * inputs }, () => limit * (2 * random() - 1));
    factors[`${path}.lora_A`] = { shape: [rank, inputs], data: A };
    factors[`${path}.lora_B`] = { shape: [outputs, rank], data: new Float32Array(outputs * rank) };
  }
  return factors;
}

/* The adapter of a run: its factors and α/r. */
const adapterOf = ({ factors, settings: { alpha, rank } }) => ({ ...factors, scaling: alpha / rank });

/* A rate that rises from zero in the warm-up, and falls along half a cosine. */
function rateAt(step, { rate, warmup, steps }) {
  if (step < warmup) return (rate * step) / warmup;
  return rate * 0.5 * (1 + Math.cos((Math.PI * (step - warmup)) / (steps - warmup)));
}

/* The rows of the next step; none of them is held out. */
function nextRows({ settings, random, lines, heldOut }) {
  const rows = [];
  while (rows.length < settings.batch) {
    const row = draw(lines, random);
    if (!heldOut.has(row.join(""))) rows.push(row);
  }
  return rows;
}

/* One step of AdamW; returns {loss, norm, grads, watched}. */
function trainStep(run, rows = nextRows(run), watch = null) {
  const params = setUp(run.settings.bits, adapterOf(run));
  const found = lossAndGrads(params, rows, watch);
  const { grads } = found;
  const squares = (g) => g.reduce((total, number) => total + number ** 2, 0);
  const norm = Math.sqrt(Object.values(grads).reduce((total, g) => total + squares(g), 0));
  adamw(run, grads, Math.min(1, run.settings.maxNorm / (norm + 1e-6))); // 1e-6: as PyTorch
  return { ...found, norm };
}

/* Move the factors of a run; all gradients are multiplied by `clip`. */
function adamw(run, grads, clip) {
  const [rate, t] = [rateAt(run.step, run.settings), run.step + 1];
  for (const [name, grad] of Object.entries(grads)) {
    const [m, v, { shape, data }] = [run.m[name], run.v[name], run.factors[name]];
    const moved = data.map((p, i) => {
      const g = clip * grad[i];
      m[i] = BETA1 * m[i] + (1 - BETA1) * g;
      v[i] = BETA2 * v[i] + (1 - BETA2) * g * g;
      const [mHat, vHat] = [m[i] / (1 - BETA1 ** t), v[i] / (1 - BETA2 ** t)];
      // p ← p − rate·m̂/(√v̂ + ε)   (Loshchilov and Hutter 2019, Alg. 2, without weight decay)
      return p - (rate * mHat) / (Math.sqrt(vHat) + EPS);
    });
    run.factors[name] = { shape, data: moved };
  }
  run.step = t;
}
