"use strict";
/* The controls and the pictures of the explorer. Nothing here computes the model: see model.js. */

const FOLDER = document.currentScript.dataset.book; // from this page to the book
const STILL = matchMedia("(prefers-reduced-motion: reduce)");
const NAMES = ["q", "k", "v", "o", "gate", "up", "down"].map((n) => `${n}_proj`);
const LAYERS = [...Array(config.num_hidden_layers).keys()];
const HEADS = [...Array(config.num_attention_heads).keys()];
const LONGEST = 256 - LENGTH; // `micro` was trained on texts of 256 tokens
const byId = (id) => document.getElementById(id);
const pathOf = (name, layer) =>
  PATHS.find((path) => path.includes(`.${layer}.`) && path.endsWith(name));

/* Return a sentence for a prompt that the model cannot answer, and "" for all others. */
function checkPrompt(prompt) {
  if (!prompt.trim()) return "The prompt is empty: write a sentence, or draw a question.";
  const other = [...prompt].find((letter) => letter < " " || letter > "~");
  if (other) {
    return `The prompt has “${other}”: use English letters, digits and signs, ` +
      "because the model was trained on nothing else.";
  }
  if (prompt.length <= LONGEST) return "";
  return `The prompt has ${prompt.length.toLocaleString("en")} characters: use at most ` +
    `${LONGEST}, because the model was trained on texts of 256 with the answer.`;
}

/* The right answer, if the prompt has the form of a question of lesson 0. */
function rightAnswer(prompt) {
  const words = prompt.match(/^(\w+) keeps a (\w+ \w+) in the (\w+)\. Who, what, where\?$/);
  return words && ` ${words[1]}, ${words[2]}, ${words[3]}.`;
}

// ------------------------------------------------------------------------------ the controls

function makeChoices(name, words, values, chosen, hint) {
  const boxes = values.map((value) => {
    const box = element("input", { type: "radio", name, value });
    box.checked = value === chosen;
    return element("label", {}, box, ` ${value}`);
  });
  return element("fieldset", {}, element("legend", {}, words), ...boxes, makeHint(hint));
}

function makeRange(id, words, max, step, value, hint) {
  const input = element("input", {
    type: "range", id, min: 0, max, step, value, "aria-describedby": `${id}-hint`,
  });
  const output = element("output", { for: id, id: `${id}-value` });
  const label = element("label", { for: id }, words, output);
  return element("div", { class: "x-range" }, label, input, makeHint(hint, `${id}-hint`));
}

const makeHint = (words, id = "") => element("p", { class: "x-hint", ...(id && { id }) }, words);

function makeSelect(id, words, options) {
  const items = options.map((option) => element("option", {}, option));
  return element("label", {}, `${words} `, element("select", { id }, ...items));
}

function makeSwitches() {
  const head = ["", ...LAYERS.map((layer) => `layer ${layer}`)];
  const rows = NAMES.map((name) => {
    const boxes = LAYERS.map((layer) => {
      const box = element("input", { type: "checkbox", "aria-label": `${name}, layer ${layer}` });
      box.value = pathOf(name, layer);
      return element("td", {}, element("label", {}, box));
    });
    return element("tr", {}, element("th", { scope: "row" }, name), ...boxes);
  });
  const titles = head.map((words) => element("th", { scope: "col" }, words));
  const table = element("table", { class: "x-switches" }, element("tr", {}, ...titles), ...rows);
  const button = (words, on) => makeButton(words, () => { setSwitches(on); update(); });
  const hint = "Each box is one pair A, B. Look for the boxes that the answer cannot do without.";
  return element("fieldset", {}, element("legend", {}, "Switches: where the adapter is added"),
    table, button("all", () => true), button("none", () => false),
    button("attention only", inAttention), button("MLP only", (path) => !inAttention(path)),
    makeHint(hint));
}

const switches = () => [...document.querySelectorAll(".x-switches input")];

function setSwitches(on) {
  switches().forEach((box) => { box.checked = on(box.value); });
}

function chosen(name) {
  return document.querySelector(`input[name=${name}]:checked`).value;
}

function readSettings() {
  return {
    prompt: byId("x-prompt").value,
    step: Number(chosen("x-step")),
    alpha: Number(byId("x-alpha").value) * ALPHA,
    rank: Number(byId("x-rank").value),
    bits: chosen("x-bits"),
    merged: chosen("x-merged") === "merged and rounded",
    switches: switches().filter((box) => box.checked).map((box) => box.value),
  };
}

function applySettings({ step, factor, rank, bits, merged, on }) {
  const values = { "x-step": step, "x-bits": bits };
  values["x-merged"] = merged ? "merged and rounded" : "separate";
  for (const [name, value] of Object.entries(values)) {
    document.querySelector(`input[name=${name}][value="${value}"]`).checked = true;
  }
  byId("x-prompt").value = DATA.questions[0][0];
  byId("x-alpha").value = factor;
  byId("x-rank").value = rank;
  setSwitches(on);
  update();
}

// ------------------------------------------------------------------------------ the pictures

/* Draw numbers (rows, columns): blue is positive, orange negative, and nothing is zero. */
function drawMatrix(canvas, numbers, columns, largest, words) {
  const rows = numbers.length / columns;
  const image = new ImageData(columns, rows);
  numbers.forEach((value, i) => {
    const colour = value > 0 ? [38, 120, 200] : [213, 94, 0];
    image.data.set([...colour, 255 * Math.min(1, Math.abs(value) / largest)], 4 * i);
  });
  Object.assign(canvas, { width: columns, height: rows });
  canvas.getContext("2d").putImageData(image, 0, 0);
  canvas.setAttribute("aria-label", words);
}

/* Show lengths as bars, with their words and numbers: [[words, number, share of the width], …]. */
function showBars(list, bars) {
  list.replaceChildren(...bars.map(([words, number, share]) => {
    const item = element("li", {}, element("span", {}, words), ` ${number}`);
    item.style.setProperty("--share", `${100 * share}%`);
    return item;
  }));
}

const showText = (id, words) => { byId(id).textContent = words; };
const count = (number) => number.toLocaleString("en");
const sizeOf = (numbers) => Math.hypot(...numbers);

/* The numbers that need no forward pass: bytes, and the weights that changed their code. */
function showNumbers(settings, params) {
  const base = baseIn(settings.bits);
  const bytes = (names) => names.reduce((sum, name) => sum + nbytes(params[name]), 0);
  const factors = Object.keys(params).filter((name) => name.includes("lora_"));
  showText("x-base-bytes", `${count(bytes(PATHS))} bytes in the projections`);
  showText("x-adapter-bytes", `${count(bytes(factors))} bytes`);
  let changed = 0;
  for (const path of PATHS) changed += changedCodes(base[path], params[path]);
  const total = PATHS.reduce((sum, path) => sum + base[path].shape[0] * base[path].shape[1], 0);
  const share = `${count(changed)} of ${count(total)} (${((100 * changed) / total).toFixed(1)} %)`;
  const none = settings.merged ? "none: the base has no codes" : "not merged";
  showText("x-codes", settings.merged && settings.bits !== "float32" ? share : none);
}

function changedCodes(before, after) {
  if (!before.q || before === after) return 0;
  return before.q.codes.reduce((n, code, i) => n + (code !== after.q.codes[i]), 0);
}

/* B holds U·S, so the length of its column k is σₖ; α/r scales it. */
function singularValues(path, { step, alpha }) {
  const B = trained[`${step}.${path}.lora_B`].data;
  return [...Array(RANK).keys()].map((k) =>
    (alpha / RANK) * sizeOf(B.filter((_, i) => i % RANK === k)));
}

/* ΔW of one projection, what the merge leaves of it, and its singular values. */
function showDelta(settings, params) {
  const path = pathOf(byId("x-name").value, byId("x-layer").selectedIndex);
  const [outputs, inputs] = denseBase[path].shape;
  const separate = setUp({ ...settings, merged: false });
  const on = `${path}.lora_A` in separate;
  const delta = on ? deltaW(path, separate) : new Float32Array(outputs * inputs);
  // The colours and the bars have one scale for all settings: ΔW after the whole training.
  const last = { step: DATA.steps.at(-1), rank: RANK, switches: [path] };
  const whole = deltaW(path, { ...adaptersAt(last), alpha: ALPHA });
  const largest = whole.reduce((a, b) => Math.max(a, Math.abs(b)), 0);
  drawMatrix(byId("x-delta"), delta, inputs, largest, `ΔW of ${path}, ${outputs} by ${inputs}`);
  const values = singularValues(path, settings).map((s, k) => (on && k < settings.rank ? s : 0));
  const full = 2 * singularValues(path, { ...last, alpha: ALPHA })[0]; // a bar of the whole width
  const bars = values.map((s, k) => [`σ${k + 1}`, s.toFixed(3), Math.min(1, s / full)]);
  showBars(byId("x-values"), bars);
  byId("x-rest").hidden = !settings.merged;
  if (!settings.merged) return;
  const base = baseIn(settings.bits)[path];
  const rest = dense(params[path]).map((w, i) => w - dense(base)[i]);
  const error = sizeOf(rest.map((w, i) => w - delta[i])) / sizeOf(delta);
  const codes = base.q && params[path].q.codes.map((code, i) => code !== base.q.codes[i]);
  const n = changedCodes(base, params[path]);
  const words = (codes ? `After the merge: ${count(n)} of ${count(rest.length)} weights changed ` +
    "their code. An empty place is in the dead zone: ΔW is too small for the next value. " +
    "(The scales are computed again, which moves all weights of some blocks a little.) " :
    "After the merge. ") +
    (sizeOf(delta) ? `The error of the merged ΔW is ${error.toFixed(2)} of its size.` : "ΔW is 0.");
  const moved = rest.map((value, i) => (codes && !codes[i] ? 0 : value));
  drawMatrix(byId("x-kept"), moved, inputs, largest, words);
  showText("x-kept-words", words);
}

/* Whom each token of the prompt looks at, in one head: a row per token. */
function showAttention(prompt, maps) {
  const [layer, head] = ["x-attention-layer", "x-head"].map((id) => byId(id).selectedIndex);
  const p = maps[layer * HEADS.length + head];
  const T = prompt.length;
  const last = [...p.subarray(p.length - T)];
  const best = last.map((value, s) => [value, s]).sort((a, b) => b[0] - a[0]).slice(0, 3);
  const words = best.map(([v, s]) => `“${prompt[s]}” at ${s + 1} (${Math.round(100 * v)} %)`);
  drawMatrix(byId("x-attention"), p, T, 1, `attention of layer ${layer}, head ${head}`);
  showText("x-attention-words", `The last token looks most at ${words.join(", ")}.`);
}

const letter = (token) => (token === 255 ? "end" : token === 32 ? "␣" : String.fromCharCode(token));

/* An answer as one button per token; a right letter is underlined. */
function showAnswer(which, answer, right) {
  byId(`x-${which}`).replaceChildren(...answer.map(({ token }, n) => {
    const button = makeButton(letter(token), () => { byId("x-place").value = n; showLikeliest(); });
    const wanted = right && (n < right.length ? right.charCodeAt(n) : 255);
    if (token === wanted) button.className = "x-right";
    button.tabIndex = -1; // the range below does the same by keyboard
    return button;
  }));
  showLikeliest();
}

function showLikeliest() {
  const n = Number(byId("x-place").value);
  showText("x-place-value", ` ${n + 1}`);
  for (const which of ["base", "adapted"]) {
    const step = shown[which][n];
    const order = step ? [...step.p.keys()].sort((a, b) => step.p[b] - step.p[a]) : [];
    const bars = order.slice(0, 5).map((token) =>
      [letter(token), step.p[token].toFixed(3), step.p[token]]);
    showBars(byId(`x-${which}-likeliest`), bars);
    [...byId(`x-${which}`).children].forEach((b, i) => b.classList.toggle("x-now", i === n));
  }
}

// ------------------------------------------------------------------------ computing in pieces

const shown = { base: [], adapted: [] };
const known = new Map(); // answers and losses of the base, which most changes do not change
let run = 0; // the number of the last change: older work stops

const text = (answer) => answer.map(({ token }) => (token === 255 ? "" : letter(token))).join("");

/* Show the settings: what is fast at once, then token by token, question by question. */
async function update() {
  const mine = ++run;
  const stopped = async () => {
    await new Promise((resolve) => { setTimeout(resolve); });
    return mine !== run;
  };
  const settings = readSettings();
  const problem = checkPrompt(settings.prompt);
  showText("x-problem", problem);
  byId("x-prompt").setAttribute("aria-invalid", Boolean(problem));
  showText("x-alpha-value", ` ${byId("x-alpha").value} × ${ALPHA} = ${settings.alpha}`);
  showText("x-rank-value", ` ${settings.rank} of ${RANK}`);
  showText("x-loss", "…");
  showText("x-status", problem ? "" : "…"); // what it said is of the settings before
  const params = setUp(settings);
  const base = { ...baseIn(settings.bits), alpha: 0 };
  showNumbers(settings, params);
  showDelta(settings, params);
  if (problem) {
    for (const which of ["adapted", "base"]) showAnswer(which, (shown[which] = []), null);
  }
  if (await stopped()) return;
  if (!problem && !(await answerBoth(settings, { adapted: params, base }, stopped))) return;
  const losses = { base: 0, adapted: 0 };
  for (const [which, weights] of Object.entries({ adapted: params, base })) {
    const key = `loss ${settings.bits}`;
    if (which === "base" && known.has(key)) losses.base = known.get(key);
    else {
      for (const row of DATA.questions) {
        losses[which] += loss(weights, row) / DATA.questions.length;
        if (await stopped()) return;
      }
    }
    if (which === "base") known.set(key, losses.base);
    else showText("x-loss", `${losses.adapted.toFixed(4)} with the adapter`);
  }
  const words = `${losses.base.toFixed(4)} base, ${losses.adapted.toFixed(4)} with the adapter`;
  showText("x-loss", words);
  if (!problem) {
    const right = rightAnswer(settings.prompt);
    const answer = text(shown.adapted).replaceAll("␣", " ").trim();
    const verdict = right ? (answer === right.trim() ? ", which is right" : ", which is wrong") : "";
    showText("x-status", `With the adapter: “${answer}”${verdict}. Loss: ${words}.`);
  }
}

/* Answer with both models; returns whether it came to the end. */
async function answerBoth({ prompt, bits }, models, stopped) {
  const maps = [];
  forward(models.adapted, encode(prompt), maps);
  showAttention(prompt, maps);
  if (await stopped()) return false;
  const key = `${bits} ${prompt}`;
  const right = rightAnswer(prompt);
  for (const [which, weights] of Object.entries(models)) {
    let answer = (which === "base" && known.get(key)) || [];
    if (!answer.length) {
      for (const step of generate(weights, prompt)) {
        shown[which] = answer = [...answer, step];
        if (!STILL.matches) showAnswer(which, answer, right);
        if (await stopped()) return false;
      }
    }
    if (which === "base") known.set(key, answer);
    shown[which] = answer;
    showAnswer(which, answer, right);
  }
  return true;
}

// ------------------------------------------------------------------------------ the whole page

function drawQuestion() {
  byId("x-prompt").value = DATA.questions[Math.floor(Math.random() * DATA.questions.length)][0];
  update();
}

/* Apply settings; what they show or hide above a button must not move the button. */
function setFrom(button, settings) {
  const top = () => button.getBoundingClientRect().top;
  const before = top();
  applySettings(settings);
  window.scrollBy(0, top() - before);
}

function makeTour() {
  const items = TOUR.map(({ title, set, predict, look, lesson: [words, page] }) => element("li", {},
    element("strong", {}, title), element("p", {}, element("em", {}, "Predict. "), predict),
    makeButton("Set this", ({ target }) => setFrom(target, set)),
    element("details", {}, element("summary", {}, "Look"), element("p", {}, look),
      element("p", {}, "Proof: ", element("a", { href: `${FOLDER}/${page}` }, words), "."))));
  return element("section", { class: "x-tour" }, element("h2", {}, "A tour in six experiments"),
    element("ol", {}, ...items));
}

function makePage() {
  const prompt = element("input", {
    id: "x-prompt", value: DATA.questions[0][0], autocomplete: "off", spellcheck: "false",
    "aria-describedby": "x-problem",
  });
  const column = (which, words) => element("div", {}, element("h3", {}, words),
    element("div", { id: `x-${which}`, class: "x-answer", role: "group", "aria-label": words }),
    element("ol", { id: `x-${which}-likeliest`, class: "x-bars" }));
  const picture = (id, ...words) => element("figure", {},
    element("canvas", { id, role: "img", "aria-label": "" }), element("figcaption", {}, ...words));
  const row = (words, id) => element("tr", {}, element("th", { scope: "row" }, words),
    element("td", { id }));
  const place = makeRange("x-place", "Token of the answer:", LENGTH - 1, 1, 1,
    "The five likeliest tokens at this place, with their probabilities. An underlined letter of " +
    "an answer is the right one.");
  const rest = picture("x-kept", element("span", { id: "x-kept-words" }));
  rest.id = "x-rest";
  return element("div", { class: "explorer" },
    element("p", { class: "x-row" }, element("label", { for: "x-prompt" }, "Prompt "), prompt,
      makeButton("New question", drawQuestion)),
    element("p", { id: "x-problem", role: "alert" }),
    element("div", { class: "x-columns" },
      column("adapted", "With the adapter"), column("base", "The base alone")),
    place, element("p", { id: "x-status", role: "status" }),
    element("table", { class: "x-numbers" },
      row("loss on twenty held-out questions, nats per token", "x-loss"),
      row("base", "x-base-bytes"), row("adapter, in float32", "x-adapter-bytes"),
      row("weights that changed their code by the merge", "x-codes")),
    element("div", { class: "x-columns" },
      element("div", {},
        makeChoices("x-step", "Steps of training", DATA.steps, 200,
          "Look for the step at which the words of the answer, not only its form, become right."),
        makeRange("x-alpha", "α:", 4, 0.25, 1,
          "α scales ΔW. Look at the singular values: all grow by the same factor."),
        makeRange("x-rank", "Rank that is kept:", RANK, 1, RANK,
          "Only the largest directions of each ΔW are kept (r in α/r stays 8). Look for the first " +
          "right answer."),
        makeChoices("x-bits", "Bits of the base", ["float32", "NF4", "int4", "2 bits"], "NF4",
          "Look at the bytes and at the loss. NF4 is the base of the training; its scales are " +
          "stored in 8 bits (double quantization)."),
        makeChoices("x-merged", "Adapter and base", ["separate", "merged and rounded"], "separate",
          "Merged: W + ΔW is rounded to the bits of the base again. Look at the second picture " +
          "of ΔW: what is empty there is lost. (A float32 base is not rounded.)"),
        makeSwitches()),
      element("div", {},
        element("p", {}, makeSelect("x-name", "ΔW of", NAMES), " ",
          makeSelect("x-layer", "in layer", LAYERS)),
        picture("x-delta", "ΔW: blue is positive, orange is negative, an empty place is zero. " +
          "The colours, and the bars below, have one scale for all settings."),
        rest, element("h3", {}, "Singular values of ΔW"),
        element("ol", { id: "x-values", class: "x-bars" }),
        element("p", {}, makeSelect("x-attention-layer", "Attention in layer", LAYERS), " ",
          makeSelect("x-head", "head", HEADS)),
        picture("x-attention", "A row per token of the prompt: what it looks at. ",
          element("span", { id: "x-attention-words" })))),
    makeTour());
}

document.addEventListener("DOMContentLoaded", () => {
  const page = makePage();
  document.querySelector('img[src$="explorer.png"]').replaceWith(page);
  setSwitches(() => true);
  byId("x-name").value = "v_proj";
  page.addEventListener("input", ({ target }) =>
    (target.id === "x-place" ? showLikeliest() : update()));
  update();
});
