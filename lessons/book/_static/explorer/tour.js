"use strict";
/* Rows, settings, predictions and experiments of the page. The words are in page.html. */

const STATEMENT = "{name} keeps a {colour} {thing} in the {place}.";
const PRESETS = {
  "Who, what, where?": `${STATEMENT} Who, what, where? → {name}, {colour} {thing}, {place}.`,
  "Where, what, who?": `${STATEMENT} Where, what, who? → {place}, {thing}, {name}.`,
  "By heart": "What is frozen? → The weight W.\nWhat is trained? → A and B.\n" +
    "What bounds the rank of BA? → The number r.",
};
const START = {
  rows: PRESETS["Who, what, where?"], rank: 8, alpha: 16, rate: 6e-3, bits: "NF4", where: "all",
  start: "A random, B = 0", seed: 1, batch: 2, steps: 400, warmup: 12, maxNorm: 1,
};

/* Questions with yes or no. A run with these settings answers them. */
const PREDICTIONS = [
  {
    set: { rank: 1 },
    ask: "With r = 1, A is one row and B one column. Will any answer be right after 400 steps?",
    why: "21 directions, one per ΔW, learn most of it. With r = 8, all eight are right at step 200.",
  },
  {
    set: { bits: "2 bits" },
    ask: "A base of 2 bits babbles. Can A and B repair it, so that any answer becomes right?",
    why: "They are trained next to the rounded weights, so they also learn to correct them. With " +
      "NF4's four bits there is little to correct, and all eight become right.",
  },
  {
    set: { rate: 0.03 },
    ask: "The learning rate is five times as high. Will any answer be right?",
    why: "A step of Adam moves a number by about the rate. Steps that are too long overshoot.",
  },
  {
    set: { start: "A = B = 0" },
    ask: "Usually A starts with random numbers and B with zeros. If both are zero: any right answer?",
    why: "∂L/∂B is a product with A, and ∂L/∂A a product with B. Both are zero, for ever.",
  },
];

const inAttention = (path) => path.includes("self_attn");
const WHERE = {
  all: () => true,
  "q and v": (path) => /[qv]_proj$/.test(path),
  attention: inAttention, MLP: (path) => !inAttention(path),
};

const VIEW = { step: 200, factor: 1, kept: 8, bits: "NF4", merged: false, on: () => true };
const EXPERIMENTS = {
  merge: { ...VIEW, step: 10, merged: true },
  alpha: { ...VIEW, factor: 0.5 },
  rank: { ...VIEW, kept: 1 },
  bits: { ...VIEW, bits: "2 bits" },
  where: { ...VIEW, on: inAttention },
};
