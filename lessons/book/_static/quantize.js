"use strict";
/* A block of 16 weights that the reader edits, quantized to NF4, FP4 and int4.
   It replaces the still picture "quantize_a_block". explorer/quantize.js computes it. */

const FIGURE_CODES = ["NF4", "FP4", "int4"];
const FIGURE_START = [
  0.05, -0.05, 0.26, 0.04, -0.21, 0.14, 0.52, 0.38, -0.28, -0.51, -0.25, 0.02, -0.93, -0.09, -0.5,
  -0.29,
];

const MAGNITUDES = [0, 1 / 192, 2 / 3, 1, 1 / 3, 1 / 2, 1 / 6, 1 / 4];
CODES.FP4 = makeCode([...MAGNITUDES, ...MAGNITUDES.map((m) => 0 - m)]); // bitsandbytes' order

/* Quantize one block {absmax, codes, bytes, values, rmse}. */
function quantizeBlock(numbers, name) {
  const weights = Float32Array.from(numbers);
  const q = quantize(weights, name, weights.length);
  const codes = [...q.codes];
  const values = [...dequantize(q)];
  const bytes = [];
  for (let i = 0; i < codes.length; i += 2) bytes.push((codes[i] << 4) | codes[i + 1]);
  const squares = values.map((v, i) => (v - weights[i]) ** 2);
  const rmse = Math.sqrt(squares.reduce((a, b) => a + b, 0) / squares.length);
  return { absmax: q.absmax[0], codes, bytes, values, rmse };
}

function makeFigureTable(inputs, cells) {
  const names = FIGURE_CODES;
  const head = ["weight", ...names.map((name) => `${name}: code → value`)];
  const table = element("table", { class: "quantize-table" });
  const heading = head.map((words) => element("th", { scope: "col" }, words));
  table.append(element("thead", {}, element("tr", {}, ...heading)));
  const body = element("tbody", {});
  inputs.forEach((input, i) => {
    const row = names.map((name) => (cells[`${name}${i}`] = element("td", {})));
    body.append(element("tr", {}, element("td", {}, input), ...row));
  });
  const kinds = { bytes: "bytes of the codes", rmse: "error (RMSE)" };
  for (const [kind, words] of Object.entries(kinds)) {
    const row = names.map((name) => (cells[name + kind] = element("td", {})));
    body.append(element("tr", {}, element("th", { scope: "row" }, words), ...row));
  }
  table.append(body);
  return table;
}

function showFigure(inputs, cells, status) {
  const numbers = inputs.map((input) => (input.value === "" ? 0 : Number(input.value)));
  if (!numbers.every((n) => Number.isFinite(f32(n)))) {
    status.textContent = "Each weight must be a finite float32 number.";
    return;
  }
  const errors = [];
  for (const name of FIGURE_CODES) {
    const q = quantizeBlock(numbers, name);
    q.codes.forEach((code, i) => {
      const cell = cells[`${name}${i}`];
      const error = Math.abs(q.values[i] - f32(numbers[i]));
      const share = q.absmax ? Math.min(100, (400 * error) / q.absmax) : 0;
      const shown = name === "int4" && code > 7 ? code - 16 : code;
      cell.textContent = `${shown} → ${q.values[i].toPrecision(4)}`;
      cell.style.setProperty("--error", `${share}%`);
    });
    const hex = q.bytes.map((b) => b.toString(16).padStart(2, "0")).join(" ");
    cells[name + "bytes"].textContent = hex;
    cells[name + "rmse"].textContent = q.rmse.toPrecision(3);
    errors.push([q.rmse, name]);
    status.textContent = `Scale (absmax): ${q.absmax.toPrecision(6)}, 4 bytes; codes: 8 bytes. `;
  }
  errors.sort((a, b) => a[0] - b[0]);
  status.textContent += `Smallest error: ${errors[0][1]}.`;
}

function startFigure(picture) {
  const inputs = FIGURE_START.map((w, i) =>
    element("input", { type: "number", step: "0.05", value: w, "aria-label": `weight ${i + 1}` }));
  const cells = {};
  const status = element("p", { role: "status" });
  const update = () => showFigure(inputs, cells, status);
  const button = (words, change) => makeButton(words, () => { change(); update(); });
  const radius = () => Math.sqrt(-2 * Math.log(1 - Math.random()));
  const normal = () => radius() * Math.cos(2 * Math.PI * Math.random());
  const random = () => inputs.forEach((input) => { input.value = (normal() * 0.4).toFixed(2); });
  const outlier = () => { inputs[0].value = 10; };
  const reset = () => inputs.forEach((input, i) => { input.value = FIGURE_START[i]; });
  const buttons = [
    button("Random weights", random),
    button("Make the first one 10", outlier),
    button("Reset", reset),
  ];
  const name = { role: "region", "aria-label": "weights, codes and errors" };
  const scroll = element("div", { class: "quantize-scroll", tabindex: "0", ...name });
  scroll.append(makeFigureTable(inputs, cells));
  const figure = element("div", { class: "quantize" });
  figure.append(element("p", {}, ...buttons), status, scroll);
  inputs.forEach((input) => input.addEventListener("input", update));
  picture.replaceWith(figure);
  update();
}

document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll('img[src*="quantize_a_block"]').forEach(startFigure);
});
