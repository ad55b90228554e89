"use strict";
/* The controls and the pictures of the page. Nothing here computes the model: see worker.js. */

const NAMES = ["q", "k", "v", "o", "gate", "up", "down"].map((n) => `${n}_proj`);
const LAYERS = [...Array(DATA.config.num_hidden_layers).keys()];
const pathOf = (name, layer) =>
  `model.layers.${layer}.${"qkvo".includes(name[0]) ? "self_attn" : "mlp"}.${name}`;
const EVERY = LAYERS.flatMap((layer) => NAMES.map((name) => pathOf(name, layer)));
const byId = (id) => document.getElementById(`x-${id}`);
const showText = (id, words) => { byId(id).textContent = words; };
const count = (number) => number.toLocaleString("en");
const say = (tokens) => new TextDecoder().decode(Uint8Array.from(tokens));

// A page that was opened as a file cannot start a worker from a file, but from a text.
const sources = [`const DATA = ${JSON.stringify(DATA)};\n`, SOURCES];
const worker = new Worker(URL.createObjectURL(new Blob(sources, { type: "text/javascript" })));
const send = (kind, more = {}) => worker.postMessage({ kind, ...more });

// ------------------------------------------------------------------------------ the controls

/* Fill a fieldset: a box per projection and layer, with buttons for the usual choices. */
function makeSwitches(id, changed) {
  const rows = NAMES.map((name) => {
    const boxes = LAYERS.map((layer) => {
      const box = element("input", { type: "checkbox", "aria-label": `${name}, layer ${layer}` });
      box.value = pathOf(name, layer);
      return element("td", {}, element("label", {}, box));
    });
    return element("tr", {}, element("th", { scope: "row" }, name), ...boxes);
  });
  const titles = ["", ...LAYERS.map((layer) => `layer ${layer}`)];
  const head = titles.map((words) => element("th", { scope: "col" }, words));
  const choose = (on) => () => { setSwitches(id, on); changed(); };
  const buttons = Object.entries(WHERE).map(([words, on]) => makeButton(words, choose(on)));
  byId(id).append(element("table", {}, element("tr", {}, ...head), ...rows), ...buttons);
}

const switches = (id) => [...byId(id).querySelectorAll("input")];
const switched = (id) => switches(id).filter((box) => box.checked).map((box) => box.value);

function setSwitches(id, on) {
  switches(id).forEach((box) => { box.checked = on(box.value); });
}

const CHOICES = ["rank", "alpha", "bits", "where", "start"];

function readSettings() {
  const settings = { ...START, rows: byId("rows").value, seed: Number(byId("seed").value) };
  for (const name of CHOICES) settings[name] = byId(name).value;
  [settings.rank, settings.alpha] = [Number(settings.rank), Number(settings.alpha)];
  const on = WHERE[settings.where];
  settings.paths = on ? EVERY.filter(on) : switched("paths");
  settings.zero = settings.start === "A = B = 0";
  settings.rate = Number((10 ** byId("rate").value).toPrecision(2));
  return settings;
}

function writeSettings(settings) {
  for (const name of ["rows", "seed", ...CHOICES]) byId(name).value = settings[name];
  byId("rate").value = Math.log10(settings.rate);
  setSwitches("paths", (path) => settings.paths?.includes(path) ?? true);
}

/* The settings as the end of the page's address. */
function toLink({ rows, rank, alpha, rate, bits, where, start, seed, paths }) {
  const on = EVERY.map((path) => Number(paths.includes(path))).join("");
  return `#${new URLSearchParams({ rows, rank, alpha, rate, bits, where, start, seed, on })}`;
}

/* The settings of an address. What is missing, or not one of the choices, is that of START. */
function fromLink(hash) {
  const fields = new URLSearchParams(hash.slice(1));
  const settings = { ...START };
  for (const name of CHOICES) {
    const options = [...byId(name).options].map((option) => option.value);
    if (options.includes(fields.get(name))) settings[name] = fields.get(name);
  }
  settings.rows = fields.get("rows")?.slice(0, 4000) || START.rows;
  const [rate, seed] = [Number(fields.get("rate")), Number(fields.get("seed") ?? START.seed)];
  if (rate >= 3e-4 && rate <= 1) settings.rate = rate;
  if (Number.isInteger(seed)) settings.seed = seed;
  if (fields.has("on")) settings.paths = EVERY.filter((_, i) => fields.get("on")[i] === "1");
  return settings;
}

// ------------------------------------------------------------------------------ the pictures

/* Draw numbers (rows, columns): blue is positive, orange negative, and nothing is zero. */
function drawMatrix(id, numbers, columns, words, largest = largestOf(numbers ?? [])) {
  const canvas = byId(id);
  const rows = numbers ? numbers.length / columns : 1;
  const image = new ImageData(numbers ? columns : 1, rows);
  numbers?.forEach((value, i) => {
    const colour = value > 0 ? [38, 120, 200] : [213, 94, 0];
    image.data.set([...colour, 255 * Math.min(1, Math.abs(value) / (largest || 1))], 4 * i);
  });
  Object.assign(canvas, { width: image.width, height: rows });
  canvas.getContext("2d").putImageData(image, 0, 0);
  canvas.setAttribute("aria-label", numbers ? `${words}, ${rows} by ${columns}` : `${words}: none`);
}

const largestOf = (numbers) => numbers.reduce((most, x) => Math.max(most, Math.abs(x)), 0);

/* One projection: W, its factors and ΔW, and below them the gradients. */
function showPicture({ W, shape: [, inputs], rank, A, B, G, gA, gB, delta, values, moved, error }) {
  drawMatrix("W", W, inputs, "W");
  drawMatrix("B", B, rank, "B");
  drawMatrix("A", A, inputs, "A");
  drawMatrix("G", G, inputs, "the gradient of W");
  drawMatrix("gB", gB, rank, "the gradient of B");
  drawMatrix("gA", gA, inputs, "the gradient of A");
  drawMatrix("delta", delta, inputs, "ΔW", largestOf(W) / 2); // one scale: one sees it grow
  drawMatrix("delta-again", delta, inputs, "ΔW", delta && largestOf(delta));
  byId("rest").hidden = !moved;
  drawMatrix("moved", moved, inputs, "what the merge leaves of ΔW", delta && largestOf(delta));
  const lost = error > 0.95 ? "all of it is lost" : "this share of ΔW is lost";
  showText("error", moved ? `Error ${error.toFixed(2)} of ΔW's size: ${lost}.` : "");
  const full = Math.max(1, ...values); // a bar of the whole width
  byId("sigma").replaceChildren(...values.map((value, k) => {
    const item = element("li", {}, element("span", {}, `σ${k + 1}`), ` ${value.toFixed(3)}`);
    item.style.setProperty("--share", `${(100 * value) / full}%`);
    return item;
  }));
}

/* Show an answer; a right letter is underlined. */
function showAnswer(id, tokens, wanted = "") {
  const right = new TextEncoder().encode(wanted);
  byId(id).replaceChildren(...tokens.map((token, n) =>
    element("span", token === right[n] ? { class: "x-right" } : {}, say([token]))));
}

let [curve, former, baseLoss] = [[], [], 1]; // points {step, trained, loss}

/* The loss on a logarithmic axis: this run, the one before in grey, and the base. */
function drawCurves() {
  const canvas = byId("curve");
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  Object.assign(canvas, { width: width * devicePixelRatio, height: height * devicePixelRatio });
  const pen = canvas.getContext("2d");
  pen.scale(devicePixelRatio, devicePixelRatio);
  const x = (step) => 38 + ((width - 56) * step) / START.steps;
  // from 10 to 0.001 nats: four powers of ten
  const y = (loss) => 8 + ((height - 26) * (1 - Math.log10(Math.max(1e-3, Math.min(10, loss))))) / 4;
  Object.assign(pen, { font: "11px system-ui", fillStyle: getComputedStyle(canvas).color });
  for (const loss of [10, 1, 0.1, 0.01, 0.001]) {
    pen.fillText(loss, 2, y(loss) + 4);
    pen.fillRect(38, y(loss), width - 56, 0.3);
  }
  for (const step of [0, 100, 200, 300, 400]) pen.fillText(step, x(step) - 8, height - 4);
  const line = (points, key, strokeStyle, lineWidth) => {
    Object.assign(pen, { strokeStyle, lineWidth });
    pen.beginPath();
    for (const point of points) {
      if (point[key] !== undefined) pen.lineTo(x(point.step), y(point[key]));
    }
    pen.stroke();
  };
  line([0, START.steps].map((step) => ({ step, loss: baseLoss })), "loss", "#888", 1);
  line(former, "loss", "#999", 2);
  line(curve, "trained", "#2678c888", 1);
  line(curve, "loss", "#d55e00", 2.5);
  canvas.setAttribute("aria-label", `the loss by step, up to step ${curve.at(-1)?.step ?? 0}`);
}

// ------------------------------------------------------------------------------ the live run

let settings = null; // of the run that is shown
let [training, loaded, order] = [false, false, 0]; // loaded: the adapter is that of lesson 0

function setTraining(on) {
  training = on;
  showText("train", on ? "Pause" : "Train");
}

/* Start again with the settings of the controls; the curve so far stays in grey. */
function startAgain() {
  settings = readSettings();
  byId("paths").hidden = settings.where !== "by switch";
  showText("rate-value", ` ${settings.rate}`);
  showText("problem", "");
  if (curve.length > 10) former = curve;
  [curve, loaded] = [[], false];
  setTraining(false);
  resetView();
  send("start", { settings });
}

/* Make some steps, of a new run if this one is over or the adapter is that of lesson 0. */
function goOn(steps) {
  if (loaded || curve.at(-1)?.step >= START.steps) startAgain();
  resetView();
  send("train", { steps, number: ++order });
}

function train() {
  if (training) send("pause");
  else goOn(START.steps);
  setTraining(!training);
}

const SHOW = {
  problem({ message }) { showText("problem", message); },
  started({ base, heldOut, bytes: [frozen, adapter] }) {
    showText("problem", ""); // of a line that was half written
    baseLoss = base.loss;
    showAnswer("base", base.answer);
    showText("prompt", base.prompt + base.wanted);
    [byId("drawn").hidden, byId("by-heart").hidden] = [!heldOut, heldOut > 0];
    showText("bytes", `Bytes: W ${count(frozen)}; A and B ${count(adapter)}, as many for their ` +
      `gradients, ${count(2 * adapter)} for Adam's averages; W has neither.`);
  },
  step(found) {
    const { step, trained, loss, right, of } = found;
    curve.push({ step, trained, loss, right, of });
    showPicture(found.picture);
    drawCurves();
    if (found.loss !== undefined) showScore(found);
  },
  picture({ picture }) { showPicture(picture); },
  paused({ now, over, number: of }) {
    if (of === order) setTraining(false); // else, it trains again
    if (of === order && now) showScore(now);
    if (over && answered !== null) settle();
  },
  viewed(found) {
    if (found.number !== number) return;
    showPicture(found.picture);
    showScore(found);
    showAnswer("base", found.base.answer);
    showText("prompt", found.prompt + found.wanted);
    const { changed, all, own, ownBase, base, apart } = found;
    showText("losses", `Loss on ${found.of} questions: base ${base.loss.toFixed(2)}, with A and B ` +
      `${found.loss.toFixed(4)}. On ${DATA.notes.length} sentences of the kind that the base was ` +
      `trained on: base ${ownBase.toFixed(3)}, with A and B ${own.toFixed(3)}.`);
    showText("note", !byId("merged").checked ? "" :
      `W + ΔW, rounded to ${byId("view-bits").value}: loss ${apart.toFixed(3)} → ` +
      `${found.loss.toFixed(3)}. ${count(changed)} of ${count(all)} weights changed their code.`);
  },
};
worker.onmessage = ({ data }) => SHOW[data.kind](data);

/* The bar that stays in sight: the step, the answer, how many are right, the loss. */
function showScore({ step, loss, right, of, answer, wanted }) {
  showAnswer("answer", answer, wanted);
  const merged = byId("merged").checked;
  showText("step", `Step ${step}${merged ? ", merged" : ""}:`);
  showText("merge", merged ? "Unmerge" : "Merge");
  const words = `${right} of ${of} right, loss ${loss.toFixed(3)} (base ${baseLoss.toFixed(2)})`;
  showText("score", words);
  // a screen reader hears every fiftieth step
  if (step % 50 === 0) showText("status", `Step ${step}: “${say(answer).trim()}”, ${words}.`);
}

// A prediction sets the controls, trains, and compares.

let [turn, answered, own] = [0, null, null]; // own: the reader's settings before a prediction
const question = () => PREDICTIONS[turn % PREDICTIONS.length];

function ask() {
  showText("ask", question().ask);
  byId("yes").hidden = byId("no").hidden = false;
}

function predict(yes) {
  own = readSettings();
  writeSettings({ ...START, ...question().set });
  startAgain();
  answered = yes;
  byId("yes").hidden = byId("no").hidden = true;
  train();
}

function settle() {
  const { right, of } = curve.at(-1);
  const [said, found] = [answered, right > 0].map((yes) => (yes ? "yes" : "no"));
  const verdict = `You said ${said}, and it is ${found}: ${right} of ${of} are right.`;
  showText("ask", `${verdict} ${question().why}`);
  answered = null;
}

function nextQuestion() {
  turn += 1;
  if (own) {
    writeSettings(own);
    startAgain();
  }
  [answered, own] = [null, null];
  ask();
}

// ------------------------------------------------------------------------------ the experiments

let number = 0; // of the last view that was asked for

/* Look at the adapter of this run, or of lesson 0 after some steps. */
function load(step) {
  [settings, curve, loaded] = [{ ...START, ...DATA.recipe, paths: EVERY }, [], true];
  setTraining(false);
  send("load", { settings, step });
}

function look() {
  number += 1;
  const prompt = byId("question").value;
  const other = [...prompt].find((letter) => letter < " " || letter > "~");
  showText("question-problem", other ? `“${other}” is no English letter, digit or sign.` : "");
  byId("question").setAttribute("aria-invalid", Boolean(other));
  const [factor, kept] = ["factor", "kept"].map((id) => Number(byId(id).value));
  showText("factor-value", ` ${factor} times that of the training`);
  showText("kept-value", ` ${kept}`);
  const wanted = {
    factor, kept, bits: byId("view-bits").value, merged: byId("merged").checked,
    paths: switched("switches"), prompt: other ? "" : prompt.trim(),
  };
  setTraining(false);
  showText("losses", "computing …");
  send("view", { wanted, number });
}

function setView({ factor, kept, bits, merged, on }) {
  [byId("factor").value, byId("kept").value, byId("view-bits").value] = [factor, kept, bits];
  [byId("merged").checked, byId("question").value] = [merged, ""];
  setSwitches("switches", on);
}

/* Back to the adapter as it is trained. */
function resetView() {
  byId("kept").max = settings.rank;
  setView({ ...VIEW, kept: settings.rank, bits: settings.bits });
  for (const id of ["note", "losses", "factor-value", "kept-value"]) showText(id, "");
}

function setExperiment(set) {
  load(set.step);
  resetView();
  setView(set);
  look();
}

async function copyLink() {
  const link = location.href.replace(/#.*/, "") + toLink(settings);
  history.replaceState(null, "", link);
  const copied = await navigator.clipboard?.writeText(link).then(() => true, () => false);
  showText("note", copied ? "Copied: the rows, the settings and the seed are in the link." :
    "The address of this page now has the rows, the settings and the seed.");
}

// ------------------------------------------------------------------------------ the whole page

let later = 0; // the timer of the next start

document.addEventListener("DOMContentLoaded", () => {
  const page = document.querySelector(".explorer");
  page.hidden = false;
  page.querySelectorAll("canvas").forEach((canvas) => canvas.setAttribute("role", "img"));
  byId("presets").append(...Object.entries(PRESETS).map(([words, rows]) =>
    makeButton(words, () => { byId("rows").value = rows; startAgain(); })));
  byId("loads").append(...DATA.steps.map((step) =>
    makeButton(`load lesson 0, step ${step}`, () => setExperiment({ ...VIEW, step }))));
  makeSwitches("paths", startAgain);
  makeSwitches("switches", look);
  const actions = {
    train, one: () => goOn(1), reset: startAgain, copy: copyLink,
    merge: () => { byId("merged").checked = !byId("merged").checked; look(); },
    yes: () => predict(true), no: () => predict(false), next: nextQuestion,
  };
  for (const [id, action] of Object.entries(actions)) byId(id).addEventListener("click", action);
  for (const [name, set] of Object.entries(EXPERIMENTS)) {
    const button = page.querySelector(`[data-experiment=${name}]`);
    button.addEventListener("click", () => setExperiment(set));
  }
  const watched = () => ({ path: pathOf(byId("watch").value, byId("watch-layer").value) });
  page.addEventListener("input", ({ target }) => {
    if (target.closest("#x-experiments")) look();
    else if (target.id.startsWith("x-watch")) send("watch", watched());
    else {
      clearTimeout(later); // while the reader types, wait
      later = setTimeout(startAgain, target.id === "x-rows" ? 300 : 0);
    }
  });
  addEventListener("resize", drawCurves);
  writeSettings(fromLink(location.hash));
  send("watch", watched());
  startAgain();
  ask();
});
