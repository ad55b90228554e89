"use strict";
/* What the page's worker does: it trains, and shows the model, while the page stays free.

   The page sends {kind, …} to one of HANDLERS; every answer has a kind, too. `run` is the run of
   train.js. `view` says how its adapter is looked at: α times `factor`, the `kept` largest
   directions, a base in other bits, merged or not, on some paths only. */

let [run, view] = [null, null];
let goal = 0; // train up to this step
let watch = ""; // the projection of the pictures
let [busy, latest, order] = [false, 0, 0]; // is it training? the last view, the last order to train

const HANDLERS = {
  start({ settings }) {
    [run, goal, view] = [null, 0, null];
    try {
      run = startTraining(settings);
    } catch ({ message }) {
      postMessage({ kind: "problem", message });
      return;
    }
    begin();
  },
  /* Take the adapter of lesson 0 after some steps instead of a run of the page. */
  load({ settings, step }) {
    [run, goal, view] = [startTraining(settings), 0, null];
    Object.assign(run, { step, factors: lessonFactors[step] });
    run.heldOut = new Map(DATA.questions.map((row) => [row.join(""), row]));
    begin();
  },
  train({ steps, number }) {
    order = number;
    if (run) goal = Math.min(run.step + steps, run.settings.steps);
    view = null;
    train();
  },
  pause() { goal = 0; },
  watch({ path }) {
    watch = path;
    if (run) postMessage({ kind: "picture", picture: picture() });
  },
  async view({ wanted, number }) {
    [goal, latest] = [0, number];
    await breathe(); // a slider sends many views: only the last one is computed
    if (!run || number !== latest) return;
    view = wanted;
    const own = (params) => loss(params, DATA.notes);
    const [base, params] = [setUp(view.bits, {}), shown()];
    postMessage({
      kind: "viewed", number, step: run.step, ...report(params), base: report(base),
      apart: loss(setUp(view.bits, adapterInView()), judges()), ...changedCodes(params),
      own: own(params), ownBase: own(base), picture: picture(),
    });
  },
};

onmessage = ({ data }) => HANDLERS[data.kind](data);

/* Let a message in. (A timer would wait for four milliseconds.) */
const channel = new MessageChannel();
const breathe = () => new Promise((resolve) => {
  channel.port1.onmessage = resolve;
  channel.port2.postMessage(0);
});

const lessonFactors = {};
for (const [name, w] of Object.entries(readSafetensors(DATA.adapters))) {
  const [step, ...path] = name.split(".");
  (lessonFactors[step] ??= {})[path.join(".")] = w;
}

/* Send what the run begins with. */
function begin() {
  const { bits } = run.settings;
  const count = (weights) => weights.reduce((total, w) => total + nbytes(w), 0);
  const bytes = [count(PATHS.map((path) => baseIn(bits)[path])), count(Object.values(run.factors))];
  postMessage({ kind: "started", base: report(setUp(bits, {})), heldOut: run.heldOut.size, bytes });
  postMessage({ kind: "step", step: run.step, ...report(shown()), picture: picture() });
}

async function train() {
  if (busy) return;
  busy = true;
  while (run && run.step < goal) {
    const { loss: trained, watched, grads } = trainStep(run, undefined, watch);
    const { step } = run;
    const words = step % 10 && step < goal ? {} : report(shown());
    postMessage({ kind: "step", step, trained, ...words, picture: picture(watched, grads) });
    await breathe();
  }
  busy = false;
  const now = run && { step: run.step, ...report(shown()) };
  const over = Boolean(run) && run.step >= run.settings.steps;
  postMessage({ kind: "paused", number: order, now, over });
}

/* The rows that are held out, or else the run's own lines. */
const judges = () =>
  (run.heldOut.size ? [...run.heldOut.values()] : run.lines.slice(0, HELD_OUT));

function report(params) {
  const rows = judges();
  const costs = rows.map((row) => negativeLogLikelihood(params, row));
  const [prompt, wanted] = view?.prompt ? [view.prompt, ""] : rows[0];
  const answer = generate(params, prompt, 40).map(({ token }) => token);
  return {
    loss: sum(costs, "total") / sum(costs, "count"), of: rows.length, prompt, wanted,
    right: costs.filter((cost) => cost.right).length, answer: answer.filter((token) => token < 255),
  };
}

/* The adapter as it is looked at. */
function adapterInView() {
  const whole = adapterOf(run);
  if (!view) return whole;
  const adapter = { scaling: view.factor * whole.scaling };
  for (const path of view.paths.filter((name) => `${name}.lora_A` in whole && view.kept)) {
    const pair = [whole[`${path}.lora_B`], whole[`${path}.lora_A`]];
    [adapter[`${path}.lora_B`], adapter[`${path}.lora_A`]] = largest(...pair, view.kept);
  }
  return adapter;
}

/* The first k columns and rows of the ordered factors: the best approximation of rank k. */
function largest(B, A, k) {
  const [rank, inputs] = A.shape;
  if (k >= rank) return [B, A];
  const ordered = bySize(B, A);
  return [
    { shape: [B.shape[0], k], data: ordered.B.data.filter((_, i) => i % rank < k) },
    { shape: [k, inputs], data: ordered.A.data.slice(0, k * inputs) },
  ];
}

const bitsInView = () => (view ?? run.settings).bits;
const shown = () => setUp(bitsInView(), adapterInView(), view?.merged);

/* How many weights of the base have another code after the merge, and how many there are. */
function changedCodes(params) {
  const base = baseIn(bitsInView());
  let [changed, all] = [0, 0];
  for (const path of PATHS) {
    all += dense(base[path]).length;
    if (params[path] === base[path] || !base[path].q) continue;
    const { codes } = params[path].q;
    changed += base[path].q.codes.reduce((n, code, i) => n + (code !== codes[i]), 0);
  }
  return { changed, all };
}

/* The arrays of one projection: W, its factors, their gradients, ΔW and what a merge leaves of it. */
function picture(watched = null, grads = {}) {
  const base = baseIn(bitsInView())[watch];
  const found = { W: dense(base), shape: base.shape, rank: 1, G: watched, values: [] };
  const adapter = adapterInView();
  const [A, B] = [adapter[`${watch}.lora_A`], adapter[`${watch}.lora_B`]];
  if (!A) return found;
  const delta = deltaW(watch, adapter);
  const values = bySize(B, A).values.map((value) => adapter.scaling * value);
  Object.assign(found, { rank: A.shape[0], A: A.data, B: B.data, delta, values });
  Object.assign(found, { gA: grads[`${watch}.lora_A`], gB: grads[`${watch}.lora_B`] });
  if (!view?.merged) return found;
  const after = shown()[watch];
  const rest = dense(after).map((w, i) => w - found.W[i]);
  const length = (numbers) => Math.hypot(...numbers);
  found.error = length(rest.map((value, i) => value - delta[i])) / (length(delta) || 1);
  // a weight that keeps its code is in the dead zone: it is drawn as unchanged
  const same = (i) => base.q && base.q.codes[i] === after.q.codes[i];
  return { ...found, moved: rest.map((value, i) => (same(i) ? 0 : value)) };
}
