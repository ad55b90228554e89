"use strict";
/* The model `micro` in JavaScript: lessons/00_qlora_in_one_file.py, in its order and with its names.

   A weight is {shape: [out, in], data: Float32Array}, or quantized: {shape, q}. A product is summed
   in JavaScript's float64 and rounded to float32 when it is stored in a Float32Array. The shape of
   activations is (T, width), one row per token: there is one text at a time.

   Lesson 0 leaves the gradients to autograd. Here each function is followed by its backward pass:
   it takes g = ∂L/∂y, for the output y, and returns ∂L/∂x, for the input x. What it needs from the
   forward pass is on the `tape`, an object with an entry per name. */

// 1. The base model: eight bytes of length, a JSON header, the numbers of all tensors.

function readSafetensors(base64) {
  const raw = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const view = new DataView(raw.buffer);
  const start = 8 + Number(view.getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(raw.subarray(8, start)));
  delete header.__metadata__;
  const tensors = {};
  for (const [name, { dtype, shape, data_offsets: [begin] }] of Object.entries(header)) {
    const data = new Float32Array(shape.reduce((a, b) => a * b, 1));
    for (let i = 0; i < data.length; i++) {
      if (dtype === "F16") data[i] = float16(view.getUint16(start + begin + 2 * i, true));
      else data[i] = view.getFloat32(start + begin + 4 * i, true);
    }
    tensors[name.replace(/\.weight$/, "")] = { shape, data };
  }
  return tensors;
}

function float16(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = (bits & 1023) / 1024;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction) : 2 ** -14 * fraction);
}

const { config } = DATA;
const denseBase = readSafetensors(DATA.micro);
const PATHS = Object.keys(denseBase).filter((path) => path.includes("_proj")).sort();

// 2. The base in few bits. NF4 has double quantization; int4 and 2 bits have a float32 absmax.

const bases = { float32: denseBase };

function quantizeWeight({ shape, data }, bits) {
  if (bits === "float32") return { shape, data };
  const q = quantize(data, bits);
  if (bits === "NF4") q.second = doubleQuantize(q.absmax);
  return { shape, q };
}

function baseIn(bits) {
  bases[bits] ??= mapBase((path, w) => (PATHS.includes(path) ? quantizeWeight(w, bits) : w));
  return bases[bits];
}

function mapBase(change) {
  return Object.fromEntries(Object.entries(denseBase).map(([path, w]) => [path, change(path, w)]));
}

function nbytes({ data, q }) {
  if (data && !q) return 4 * data.length;
  const codes = q.codes.length * (q.name === "2 bits" ? 2 / 8 : 4 / 8);
  const { second } = q;
  const scales = second ? second.codes.length + 4 * second.nestedAbsmax.length + 4 : 0;
  return codes + (second ? scales : 4 * q.absmax.length);
}

// 3. LoRA

const zeros = (array) => new Float32Array(array.length);

function add(sum, y, scale = 1) {
  for (let i = 0; i < sum.length; i++) sum[i] += scale * y[i];
  return sum;
}

function join(a, b) {
  const whole = new Float32Array(a.length + b.length);
  whole.set(a);
  whole.set(b, a.length);
  return whole;
}

/* (rows, columns) -> (columns, rows) */
function transpose(x, columns) {
  const rows = x.length / columns;
  const y = zeros(x);
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < columns; j++) y[j * rows + i] = x[i * columns + j];
  }
  return y;
}

/* a bᵀ: (n, K) and (m, K) -> (n, m). Two rows of a and four of b at a time, because each number
   that is read then serves several sums: three times as fast as one sum at a time. */
function product(a, b, K) {
  const [n, m] = [a.length / K, b.length / K];
  const y = new Float32Array(n * m);
  for (let i = 0; i < n; i += 2) {
    const next = i + 1 < n ? 1 : 0; // the last row of an odd n is computed twice
    let j = 0;
    for (; j + 4 <= m; j += 4) {
      let s0 = 0, s1 = 0, s2 = 0, s3 = 0, t0 = 0, t1 = 0, t2 = 0, t3 = 0;
      for (let k = 0, p = i * K, q = j * K; k < K; k++, p++, q++) {
        const first = a[p], second = a[p + next * K];
        const b0 = b[q], b1 = b[q + K], b2 = b[q + 2 * K], b3 = b[q + 3 * K];
        s0 += first * b0; s1 += first * b1; s2 += first * b2; s3 += first * b3;
        t0 += second * b0; t1 += second * b1; t2 += second * b2; t3 += second * b3;
      }
      const s = i * m + j, t = s + next * m;
      y[s] = s0; y[s + 1] = s1; y[s + 2] = s2; y[s + 3] = s3;
      y[t] = t0; y[t + 1] = t1; y[t + 2] = t2; y[t + 3] = t3;
    }
    for (; j < m; j++) {
      for (let row = i; row <= i + next; row++) {
        let sum = 0;
        for (let k = 0; k < K; k++) sum += a[row * K + k] * b[j * K + k];
        y[row * m + j] = sum;
      }
    }
  }
  return y;
}

/* x Wᵀ: (T, in) -> (T, out) */
const matmul = (x, w) => product(x, dense(w), w.shape[1]);

/* ∂L/∂x = g W: (T, out) -> (T, in). W is frozen: it has no gradient. */
function matmulBackward(g, w) {
  w.transposed ??= transpose(dense(w), w.shape[1]);
  return product(g, w.transposed, w.shape[0]);
}

/* Lesson 0 drops the dequantized weight after each product. The page keeps it, to be fast. */
function dense(w) {
  w.data ??= dequantize(w.q);
  return w.data;
}

function linear(x, path, params, tape) {
  const h = matmul(x, params[path]);
  tape[path] = x;
  if (`${path}.lora_A` in params) {
    const [A, B] = [params[`${path}.lora_A`], params[`${path}.lora_B`]];
    // h = W₀x + (α/r)·BAx   (LoRA, Eq. 3, with the scaling of Sec. 4.1)
    add(h, matmul(matmul(x, A), B), params.scaling);
  }
  return h;
}

function linearBackward(g, path, params, tape, grads) {
  const gx = matmulBackward(g, params[path]);
  tape[`${path}.g`] = g;
  if (`${path}.lora_A` in params) {
    const [A, B] = [params[`${path}.lora_A`], params[`${path}.lora_B`]];
    const [x, T] = [tape[path], g.length / B.shape[0]];
    const [gB, xA] = [matmulBackward(g, B), matmul(x, A)];
    const rank = A.shape[0];
    // ∂L/∂A = (α/r)·(g B)ᵀx and ∂L/∂B = (α/r)·gᵀ(x Aᵀ), sums over the tokens
    const [gBT, xT] = [transpose(gB, rank), transpose(x, A.shape[1])];
    const [gT, xAT] = [transpose(g, B.shape[0]), transpose(xA, rank)];
    add((grads[`${path}.lora_A`] ??= zeros(A.data)), product(gBT, xT, T), params.scaling);
    add((grads[`${path}.lora_B`] ??= zeros(B.data)), product(gT, xAT, T), params.scaling);
    // ∂L/∂x = g W₀ + (α/r)·(g B)A
    add(gx, matmulBackward(gB, A), params.scaling);
  }
  return gx;
}

// 4. The Llama

function rmsNorm(x, { data: weight }) {
  const D = weight.length;
  const y = zeros(x);
  for (let start = 0; start < x.length; start += D) {
    const root = rootMeanSquare(x, start, D);
    // y = x / √(mean(x²) + ε) ∘ w   (Zhang and Sennrich 2019, Eq. 4)
    for (let i = 0; i < D; i++) y[start + i] = (x[start + i] / root) * weight[i];
  }
  return y;
}

function rmsNormBackward(g, x, { data: weight }) {
  const D = weight.length;
  const gx = zeros(x);
  for (let start = 0; start < x.length; start += D) {
    const root = rootMeanSquare(x, start, D);
    let along = 0; // the mean of g ∘ w ∘ x/root
    for (let i = 0; i < D; i++) along += (g[start + i] * weight[i] * x[start + i]) / root / D;
    // ∂L/∂x = (g ∘ w − x/root·mean(g ∘ w ∘ x/root)) / root
    for (let i = 0; i < D; i++) {
      gx[start + i] = (g[start + i] * weight[i] - (x[start + i] / root) * along) / root;
    }
  }
  return gx;
}

function rootMeanSquare(x, start, D) {
  let squares = 0;
  for (let i = start; i < start + D; i++) squares += x[i] ** 2;
  return Math.sqrt(squares / D + config.rms_norm_eps);
}

/* Encode positions first, first + 1, … in each head of x (T, D), in place: rotate (j, j + hd/2).
   direction −1 rotates back. That is the backward pass: the transpose of a rotation. */
function applyRope(x, first = 0, direction = 1) {
  const { hidden_size: D, head_dim: hd, rope_theta: theta } = config;
  for (let t = 0; t < x.length / D; t++) {
    for (let j = 0; j < hd / 2; j++) {
      // angle(t, j) = t·θ^(−2j/hd)   (RoFormer, Sec. 3.2.2)
      const angle = f32((first + t) * f32(1 / f32(theta ** ((2 * j) / hd))));
      const [cos, sin] = [Math.cos(angle), direction * Math.sin(angle)];
      for (let head = t * D; head < (t + 1) * D; head += hd) {
        const [one, other] = [head + j, head + j + hd / 2];
        const [a, b] = [x[one], x[other]];
        // (a, b) → (a·cos − b·sin, b·cos + a·sin)   (RoFormer, Eq. 34; pairs as in Hugging Face)
        x[one] = a * cos - b * sin;
        x[other] = b * cos + a * sin;
      }
    }
  }
  return x;
}

/* Collect from earlier tokens: (T, D) -> (T, D). past: the tape entry of the tokens before x. */
function attention(x, layer, params, tape, past) {
  const { hidden_size: D, head_dim: hd } = config;
  const ofName = (n) => linear(x, `${layer}.self_attn.${n}_proj`, params, tape);
  let [q, k, v] = ["q", "k", "v"].map(ofName);
  const first = past ? past.k.length / D : 0;
  applyRope(q, first);
  applyRope(k, first);
  if (past) [k, v] = [join(past.k, k), join(past.v, v)];
  const [T, S] = [q.length / D, k.length / D];
  const mixed = zeros(x);
  const probabilities = [];
  for (let head = 0; head < D; head += hd) {
    const p = new Float32Array(T * S);
    for (let t = 0; t < T; t++) {
      const scores = new Float32Array(first + t + 1); // no later tokens
      for (let s = 0; s < scores.length; s++) {
        let sum = 0;
        for (let j = head; j < head + hd; j++) sum += q[t * D + j] * k[s * D + j];
        scores[s] = sum / hd ** 0.5;
      }
      // softmax(QKᵀ/√hd) V   (Vaswani et al. 2017, Eq. 1)
      p.set(softmax(scores), t * S);
      for (let s = 0; s < scores.length; s++) {
        for (let j = head; j < head + hd; j++) mixed[t * D + j] += p[t * S + s] * v[s * D + j];
      }
    }
    probabilities.push(p);
  }
  tape[`${layer}.self_attn`] = { q, k, v, probabilities };
  return linear(mixed, `${layer}.self_attn.o_proj`, params, tape);
}

function attentionBackward(g, layer, params, tape, grads) {
  const { hidden_size: D, head_dim: hd } = config;
  const { q, k, v, probabilities } = tape[`${layer}.self_attn`];
  const mixed = linearBackward(g, `${layer}.self_attn.o_proj`, params, tape, grads);
  const [gq, gk, gv] = [zeros(q), zeros(k), zeros(v)];
  const T = q.length / D;
  probabilities.forEach((p, h) => {
    const head = h * hd;
    for (let t = 0; t < T; t++) {
      const gp = new Float64Array(t + 1); // ∂L/∂p = ∂L/∂mixed·v
      let mean = 0; // Σ p ∘ ∂L/∂p
      for (let s = 0; s <= t; s++) {
        for (let j = head; j < head + hd; j++) gp[s] += mixed[t * D + j] * v[s * D + j];
        mean += p[t * T + s] * gp[s];
      }
      for (let s = 0; s <= t; s++) {
        // through the softmax: ∂L/∂score = p ∘ (∂L/∂p − Σ p ∘ ∂L/∂p)
        const score = (p[t * T + s] * (gp[s] - mean)) / hd ** 0.5;
        for (let j = head; j < head + hd; j++) {
          gv[s * D + j] += p[t * T + s] * mixed[t * D + j];
          gq[t * D + j] += score * k[s * D + j];
          gk[s * D + j] += score * q[t * D + j];
        }
      }
    }
  });
  applyRope(gq, 0, -1);
  applyRope(gk, 0, -1);
  const gx = zeros(mixed);
  for (const [n, gn] of Object.entries({ q: gq, k: gk, v: gv })) {
    add(gx, linearBackward(gn, `${layer}.self_attn.${n}_proj`, params, tape, grads));
  }
  return gx;
}

function softmax(scores) {
  const largest = scores.reduce((a, b) => Math.max(a, b));
  const p = scores.map((score) => Math.exp(score - largest));
  const sum = p.reduce((a, b) => a + b, 0);
  return p.map((value) => value / sum);
}

const sigmoid = (a) => 1 / (1 + Math.exp(-a));

function mlp(x, layer, params, tape) {
  const [gate, up] = ["gate", "up"].map((n) => linear(x, `${layer}.mlp.${n}_proj`, params, tape));
  tape[`${layer}.mlp`] = { gate, up };
  // W_down(gate·σ(gate) ∘ up), σ(a) = 1/(1 + e⁻ᵃ)   (SwiGLU: Shazeer 2020, Eq. 6)
  const hidden = gate.map((a, i) => a * sigmoid(a) * up[i]);
  return linear(hidden, `${layer}.mlp.down_proj`, params, tape);
}

function mlpBackward(g, layer, params, tape, grads) {
  const { gate, up } = tape[`${layer}.mlp`];
  const hidden = linearBackward(g, `${layer}.mlp.down_proj`, params, tape, grads);
  const gUp = hidden.map((h, i) => h * gate[i] * sigmoid(gate[i]));
  // (a·σ(a))′ = σ(a)·(1 + a·(1 − σ(a)))
  const gGate = hidden.map((h, i) => {
    const share = sigmoid(gate[i]);
    return h * up[i] * share * (1 + gate[i] * (1 - share));
  });
  const gx = linearBackward(gGate, `${layer}.mlp.gate_proj`, params, tape, grads);
  return add(gx, linearBackward(gUp, `${layer}.mlp.up_proj`, params, tape, grads));
}

/* Compute the logits (T, vocabulary) of tokens (T,), or of the tokens from `start` on only.
   past: the tape of the tokens before these; their keys and values are used again. */
function forward(params, tokens, tape = {}, start = 0, past = {}) {
  const embedding = params["model.embed_tokens"];
  const D = config.hidden_size;
  const x = new Float32Array(tokens.length * D);
  tokens.forEach((token, t) => x.set(embedding.data.subarray(token * D, (token + 1) * D), t * D));
  for (let i = 0; i < config.num_hidden_layers; i++) {
    const layer = `model.layers.${i}`;
    const norms = ["input", "post_attention"].map((n) => `${layer}.${n}_layernorm`);
    tape[norms[0]] = x.slice();
    const h = rmsNorm(x, params[norms[0]]);
    add(x, attention(h, layer, params, tape, past[`${layer}.self_attn`]));
    tape[norms[1]] = x.slice();
    add(x, mlp(rmsNorm(x, params[norms[1]]), layer, params, tape));
  }
  tape["model.norm"] = x.subarray(start * D);
  return matmul(rmsNorm(tape["model.norm"], params["model.norm"]), embedding);
}

/* Add the gradients of A and B to `grads`; g (T − start, vocabulary) is that of the logits. */
function backward(g, params, tape, grads) {
  const gLast = matmulBackward(g, params["model.embed_tokens"]);
  const last = rmsNormBackward(gLast, tape["model.norm"], params["model.norm"]);
  const gx = zeros(tape["model.layers.0.input_layernorm"]);
  gx.set(last, gx.length - last.length); // the tokens before `start` have no logits
  for (let i = config.num_hidden_layers - 1; i >= 0; i--) {
    const layer = `model.layers.${i}`;
    const norms = ["input", "post_attention"].map((n) => `${layer}.${n}_layernorm`);
    // y = x + f(norm(x)): g goes to x along both ways
    const ofMlp = mlpBackward(gx, layer, params, tape, grads);
    add(gx, rmsNormBackward(ofMlp, tape[norms[1]], params[norms[1]]));
    const ofAttention = attentionBackward(gx, layer, params, tape, grads);
    add(gx, rmsNormBackward(ofAttention, tape[norms[0]], params[norms[0]]));
  }
}

/* What the tokens of an answer cost in one row [prompt, answer]: {total, count, right, g, tape}.

   total: the sum of −log p, in nats, over `count` tokens. right: whether each of them is the
   likeliest one, so that the model answers so. g: the gradient of the total for the logits. */
function negativeLogLikelihood(params, [prompt, answer]) {
  const tokens = [...encode(prompt + answer), config.eos_token_id];
  const start = encode(prompt).length; // the first token of the answer
  const tape = {};
  // position t predicts token t + 1, so the first answer token is predicted at start − 1
  const logits = forward(params, tokens.slice(0, -1), tape, start - 1);
  const [V, g] = [config.vocab_size, zeros(logits)];
  let [total, right] = [0, true];
  tokens.slice(start).forEach((target, t) => {
    const p = softmax(Float64Array.from(logits.subarray(t * V, (t + 1) * V)));
    total -= Math.log(p[target]); // −log p[target]
    right &&= p[target] === p.reduce((a, b) => Math.max(a, b));
    // ∂(−log p[target])/∂logits = p − one-hot(target)
    g.set(p, t * V);
    g[t * V + target] -= 1;
  });
  return { total, count: tokens.length - start, right, g, tape };
}

/* L = −mean(log p[target]), in nats, over the answers' tokens of all rows. */
function loss(params, rows) {
  const costs = rows.map((row) => negativeLogLikelihood(params, row));
  return sum(costs, "total") / sum(costs, "count");
}

const sum = (items, key) => items.reduce((total, item) => total + item[key], 0);

/* The loss and its gradients {name: Float32Array}. watch: a path; its ∂L/∂W is `watched`. */
function lossAndGrads(params, rows, watch) {
  const costs = rows.map((row) => negativeLogLikelihood(params, row));
  const count = sum(costs, "count");
  const grads = {};
  let watched = null;
  for (const { g, tape } of costs) {
    backward(g.map((value) => value / count), params, tape, grads);
    if (!watch) continue;
    const [outputs, inputs] = params[watch].shape;
    const [x, gy] = [transpose(tape[watch], inputs), transpose(tape[`${watch}.g`], outputs)];
    const G = product(gy, x, gy.length / outputs); // ∂L/∂W = gᵀx, which only the picture needs
    watched = watched ? add(watched, G) : G;
  }
  return { loss: sum(costs, "total") / count, grads, watched };
}

// 5. A token is a byte of text.

const encode = (text) => [...new TextEncoder().encode(text)];
const LENGTH = 24; // tokens of an answer

/* Continue the prompt: a list of {token, p}, where p has the probabilities of all tokens. */
function generate(params, prompt, length = LENGTH) {
  const answer = [];
  let [tokens, past] = [encode(prompt), {}];
  while (answer.length < length) {
    const tape = {};
    const p = softmax(forward(params, tokens, tape, tokens.length - 1, past));
    const token = p.indexOf(p.reduce((a, b) => Math.max(a, b)));
    answer.push({ token, p });
    if (token === config.eos_token_id) break;
    [tokens, past] = [[token], tape];
  }
  return answer;
}

// 6. Training: see train.js.

// 7. Merging, and rounding the result to the bits of the base again

/* ΔW = (α/r)·BA of one projection. */
function deltaW(path, params) {
  const [A, B] = [params[`${path}.lora_A`], params[`${path}.lora_B`]];
  const BA = product(B.data, transpose(A.data, A.shape[1]), A.shape[0]);
  return BA.map((number) => f32(params.scaling) * number);
}

/* W' = W₀ + (α/r)·BA   (LoRA, Sec. 4), a dense weight */
function mergeWeight(path, params) {
  const delta = deltaW(path, params);
  const { shape } = params[path];
  return { shape, data: dense(params[path]).map((w, i) => w + delta[i]) };
}

/* All weights of a model: a base in some bits, with an adapter {name: factor, scaling} or merged. */
function setUp(bits, adapter, merged = false) {
  const params = { ...baseIn(bits), ...adapter };
  if (!merged) return params;
  for (const path of PATHS.filter((name) => `${name}.lora_A` in params)) {
    params[path] = quantizeWeight(mergeWeight(path, params), bits);
    delete params[`${path}.lora_A`];
    delete params[`${path}.lora_B`];
  }
  return params;
}

/* BA as two factors that are ordered by size: {B: U·S, A: Vᵀ, values: the singular values}.

   Column k of U·S has the length σₖ, and the rows of Vᵀ are orthonormal, so the first k columns and
   rows are the best approximation of rank k (Eckart and Young 1936). */
function bySize(B, A) {
  const [rank, inputs] = A.shape;
  const take = (data, length, start, stride) =>
    Float64Array.from({ length }, (_, i) => data[start + i * stride]);
  const rows = [...Array(rank).keys()].map((k) => take(A.data, inputs, k * inputs, 1));
  const columns = [...Array(rank).keys()].map((k) => take(B.data, B.shape[0], k, rank));
  const dot = (a, b) => a.reduce((total, value, i) => total + value * b[i], 0);
  // Gram and Schmidt: A = L·Q with orthonormal rows Q, so BA = (B L)·Q
  for (let k = 0; k < rank; k++) {
    for (let n = 0; n < k; n++) {
      const along = dot(rows[k], rows[n]);
      rows[k] = rows[k].map((value, i) => value - along * rows[n][i]);
      columns[n] = columns[n].map((value, i) => value + along * columns[k][i]);
    }
    const length = Math.sqrt(dot(rows[k], rows[k])) || 1;
    rows[k] = rows[k].map((value) => value / length);
    columns[k] = columns[k].map((value) => value * length);
  }
  // Jacobi: rotate pairs of columns until all are orthogonal (Hestenes 1958), and the rows with them
  const rotate = (vectors, n, k, cos, sin) => {
    const [a, b] = [vectors[n], vectors[k]];
    vectors[n] = a.map((value, i) => cos * value - sin * b[i]);
    vectors[k] = b.map((value, i) => cos * value + sin * a[i]);
  };
  for (let sweep = 0; sweep < 12; sweep++) {
    for (let n = 0; n < rank; n++) {
      for (let k = n + 1; k < rank; k++) {
        const [a, b, c] = [[n, n], [k, k], [n, k]].map(([i, j]) => dot(columns[i], columns[j]));
        const angle = 0.5 * Math.atan2(2 * c, b - a);
        rotate(columns, n, k, Math.cos(angle), Math.sin(angle));
        rotate(rows, n, k, Math.cos(angle), Math.sin(angle));
      }
    }
  }
  const values = columns.map((column) => Math.sqrt(dot(column, column)));
  const order = [...values.keys()].sort((n, k) => values[k] - values[n]);
  const flat = order.flatMap((k) => [...columns[k]]);
  const data = Float32Array.from(order.flatMap((k) => [...rows[k]]));
  const ordered = { shape: B.shape, data: transpose(Float32Array.from(flat), B.shape[0]) };
  return { values: order.map((k) => values[k]), B: ordered, A: { shape: A.shape, data } };
}
