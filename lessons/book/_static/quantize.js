/* A block of 16 weights that the reader edits, quantized to NF4, FP4 and int4.
   It replaces the still picture "quantize_a_block". Arithmetic is float32, as in minilora.nf4:
   each operation is rounded by Math.fround. */

const f32 = Math.fround;
const NF4 = [
  -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
  -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
  0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
  0.7229568362236023, 1.0,
];
const MAGNITUDES = [0, 1 / 192, 2 / 3, 1, 1 / 3, 1 / 2, 1 / 6, 1 / 4];
const VALUES = {
  NF4: NF4,
  FP4: [...MAGNITUDES, ...MAGNITUDES.map((m) => 0 - m)], // bitsandbytes' order of the codes
  // the numbers -7 to 7 over 7, at the place of their four bits; -8 is not used
  int4: [...Array(8).keys(), null, -7, -6, -5, -4, -3, -2, -1].map((q) => q && q / 7),
};
const START = [
  0.05, -0.05, 0.26, 0.04, -0.21, 0.14, 0.52, 0.38, -0.28, -0.51, -0.25, 0.02, -0.93, -0.09, -0.5,
  -0.29,
];

/* The codes by rising value, and the midpoints between neighbouring values. */
function makeCode(values) {
  const rounded = values.map((v) => (v === null ? null : f32(v)));
  const order = [...rounded.keys()].filter((i) => rounded[i] !== null);
  order.sort((a, b) => rounded[a] - rounded[b]);
  const midpoints = order.slice(1).map((c, i) => f32(f32(rounded[order[i]] + rounded[c]) / f32(2)));
  return { values: rounded, order, midpoints };
}

const CODES = Object.fromEntries(Object.entries(VALUES).map(([name, v]) => [name, makeCode(v)]));

/* Quantize one block: {absmax, codes, bytes, values, rmse}. */
function quantizeBlock(numbers, name) {
  const { values, order, midpoints } = CODES[name];
  const weights = numbers.map(f32);
  const absmax = Math.max(...weights.map(Math.abs));
  const inverse = f32(1 / Math.max(absmax, f32(1e-38)));
  const codes = weights.map((w) => {
    const x = f32(w * inverse);
    return order[midpoints.filter((m) => m < x).length]; // on a midpoint: the lower value
  });
  const restored = codes.map((c) => f32(values[c] * absmax));
  const bytes = [];
  for (let i = 0; i < codes.length; i += 2) bytes.push((codes[i] << 4) | codes[i + 1]);
  const squares = restored.map((v, i) => (v - weights[i]) ** 2);
  const rmse = Math.sqrt(squares.reduce((a, b) => a + b, 0) / squares.length);
  return { absmax, codes, bytes, values: restored, rmse };
}

function element(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function makeTable(inputs, cells) {
  const names = Object.keys(CODES);
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

function show(inputs, cells, status) {
  const numbers = inputs.map((input) => (input.value === "" ? 0 : Number(input.value)));
  if (!numbers.every((n) => Number.isFinite(f32(n)))) {
    status.textContent = "Each weight must be a finite float32 number.";
    return;
  }
  const errors = [];
  for (const name of Object.keys(CODES)) {
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

function start(picture) {
  const inputs = START.map((w, i) =>
    element("input", { type: "number", step: "0.05", value: w, "aria-label": `weight ${i + 1}` }));
  const cells = {};
  const status = element("p", { role: "status" });
  const update = () => show(inputs, cells, status);
  const button = (words, change) => {
    const node = element("button", { type: "button" }, words);
    node.addEventListener("click", () => { change(); update(); });
    return node;
  };
  const radius = () => Math.sqrt(-2 * Math.log(1 - Math.random()));
  const normal = () => radius() * Math.cos(2 * Math.PI * Math.random());
  const random = () => inputs.forEach((input) => { input.value = (normal() * 0.4).toFixed(2); });
  const outlier = () => { inputs[0].value = 10; };
  const reset = () => inputs.forEach((input, i) => { input.value = START[i]; });
  const buttons = [
    button("Random weights", random),
    button("Make the first one 10", outlier),
    button("Reset", reset),
  ];
  const name = { role: "region", "aria-label": "weights, codes and errors" };
  const scroll = element("div", { class: "quantize-scroll", tabindex: "0", ...name });
  scroll.append(makeTable(inputs, cells));
  const figure = element("div", { class: "quantize" });
  figure.append(element("p", {}, ...buttons), status, scroll);
  inputs.forEach((input) => input.addEventListener("input", update));
  picture.replaceWith(figure);
  update();
}

window.quantizeBlock = quantizeBlock;
document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll('img[src*="quantize_a_block"]').forEach(start);
});
