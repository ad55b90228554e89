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
  start: "A random, B = 0", seed: 1, batch: 2, steps: 400, warmup: 12,
};

/* Questions with yes or no. A run with these settings answers them. */
const PREDICTIONS = [
  {
    set: { rank: 1 },
    ask: "With r = 1, A is one row and B one column. Will it learn the answer in 400 steps?",
    why: "Each ΔW has one direction only. Together, the 21 directions are enough for this task, but " +
      "they take longer: with r = 8, all eight were right at step 200.",
  },
  {
    set: { bits: "2 bits" },
    ask: "With 2 bits, the base's weights are badly rounded, and it babbles. Can A and B repair it?",
    why: "They are trained next to the rounded weights, so they also learn to correct them. With " +
      "4 bits there is little to correct: that is why QLoRA's four bits are enough.",
  },
  {
    set: { rate: 0.03 },
    ask: "The learning rate is five times as high. Will it learn?",
    why: "A step of Adam moves a number by about the rate, however small its gradient is. Steps " +
      "that are too long jump over the valley.",
  },
  {
    set: { start: "A = B = 0" },
    ask: "Usually A starts with random numbers and B with zeros. If both are zero, will it learn?",
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
