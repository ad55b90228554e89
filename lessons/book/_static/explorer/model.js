"use strict";
/* The model `micro` in JavaScript: lessons/00_qlora_in_one_file.py, in its order and with its names.

   A weight is {shape: [out, in], data: Float32Array}, or quantized: {shape, q}. A product is summed
   in JavaScript's float64 and rounded to float32 when it is stored in a Float32Array. The shape of
   activations is (T, width), one row per token: there is one text per batch. */

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
const trained = readSafetensors(DATA.adapters); // {"step.path.lora_A": …}: Vᵀ, and lora_B: U·S
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

const { rank: RANK, alpha: ALPHA } = DATA;

/* The factors at a step, cut to `rank` directions, of the projections that are switched on. */
function adaptersAt({ step, rank, switches }) {
  const adapters = {};
  for (const path of rank ? switches : []) {
    const A = trained[`${step}.${path}.lora_A`];
    const B = trained[`${step}.${path}.lora_B`];
    // the factors are ordered by singular value, so the first ones are the best of this rank
    const columns = B.data.filter((_, i) => i % RANK < rank);
    const inputs = A.shape[1];
    adapters[`${path}.lora_A`] = { shape: [rank, inputs], data: A.data.slice(0, rank * inputs) };
    adapters[`${path}.lora_B`] = { shape: [B.shape[0], rank], data: columns };
  }
  return adapters;
}

function linear(x, path, params) {
  const h = matmul(x, params[path]);
  if (`${path}.lora_A` in params) {
    const [A, B] = [params[`${path}.lora_A`], params[`${path}.lora_B`]];
    // h = W₀x + (α/r)·BAx   (LoRA, Eq. 3, with the scaling of Sec. 4.1)
    const update = matmul(matmul(x, A), B);
    const scaling = params.alpha / RANK;
    for (let i = 0; i < h.length; i++) h[i] += scaling * update[i];
  }
  return h;
}

/* x Wᵀ: (T, in) -> (T, out) */
function matmul(x, w) {
  const [outputs, inputs] = w.shape;
  const W = dense(w);
  const T = x.length / inputs;
  const y = new Float32Array(T * outputs);
  for (let t = 0; t < T; t++) {
    for (let o = 0; o < outputs; o++) {
      let sum = 0;
      for (let i = 0; i < inputs; i++) sum += x[t * inputs + i] * W[o * inputs + i];
      y[t * outputs + o] = sum;
    }
  }
  return y;
}

/* Lesson 0 drops the dequantized weight after each product. The page keeps it, to be fast. */
function dense(w) {
  w.data ??= dequantize(w.q);
  return w.data;
}

// 4. The Llama

function rmsNorm(x, { data: weight }) {
  const D = weight.length;
  const y = new Float32Array(x.length);
  for (let start = 0; start < x.length; start += D) {
    let squares = 0;
    for (let i = 0; i < D; i++) squares += x[start + i] ** 2;
    // y = x / √(mean(x²) + ε) ∘ w   (Zhang and Sennrich 2019, Eq. 4)
    const root = Math.sqrt(squares / D + config.rms_norm_eps);
    for (let i = 0; i < D; i++) y[start + i] = (x[start + i] / root) * weight[i];
  }
  return y;
}

/* Encode positions 0, 1, 2, … in each head of x (T, D), in place, by rotating (j, j + hd/2). */
function applyRope(x) {
  const { hidden_size: D, head_dim: hd, rope_theta: theta } = config;
  for (let t = 0; t < x.length / D; t++) {
    for (let j = 0; j < hd / 2; j++) {
      // angle(t, j) = t·θ^(−2j/hd)   (RoFormer, Sec. 3.2.2)
      const angle = f32(t * f32(1 / f32(theta ** ((2 * j) / hd))));
      const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
      for (let head = t * D; head < (t + 1) * D; head += hd) {
        const [first, second] = [head + j, head + j + hd / 2];
        const [a, b] = [x[first], x[second]];
        // (a, b) → (a·cos − b·sin, b·cos + a·sin)   (RoFormer, Eq. 34; pairs as in Hugging Face)
        x[first] = a * cos - b * sin;
        x[second] = b * cos + a * sin;
      }
    }
  }
  return x;
}

/* Collect from earlier tokens: (T, D) -> (T, D). keep: a list for the probabilities per head. */
function attention(x, layer, params, keep) {
  const { hidden_size: D, head_dim: hd } = config;
  const T = x.length / D;
  const [q, k, v] = ["q", "k", "v"].map((n) => linear(x, `${layer}.self_attn.${n}_proj`, params));
  applyRope(q);
  applyRope(k);
  const mixed = new Float32Array(x.length);
  for (let head = 0; head < D; head += hd) {
    const probabilities = new Float32Array(T * T);
    for (let t = 0; t < T; t++) {
      const scores = new Float32Array(t + 1); // no later tokens
      for (let s = 0; s <= t; s++) {
        let sum = 0;
        for (let j = head; j < head + hd; j++) sum += q[t * D + j] * k[s * D + j];
        scores[s] = sum / hd ** 0.5;
      }
      // softmax(QKᵀ/√hd) V   (Vaswani et al. 2017, Eq. 1)
      const p = softmax(scores);
      probabilities.set(p, t * T);
      for (let s = 0; s < p.length; s++) {
        for (let j = head; j < head + hd; j++) mixed[t * D + j] += p[s] * v[s * D + j];
      }
    }
    keep?.push(probabilities);
  }
  return linear(mixed, `${layer}.self_attn.o_proj`, params);
}

function softmax(scores) {
  const largest = Math.max(...scores);
  const p = scores.map((score) => Math.exp(score - largest));
  const sum = p.reduce((a, b) => a + b, 0);
  return p.map((value) => value / sum);
}

function mlp(x, layer, params) {
  const [gate, up] = ["gate", "up"].map((n) => linear(x, `${layer}.mlp.${n}_proj`, params));
  // W_down(gate·σ(gate) ∘ up), σ(a) = 1/(1 + e⁻ᵃ)   (SwiGLU: Shazeer 2020, Eq. 6)
  const hidden = gate.map((a, i) => (a / (1 + Math.exp(-a))) * up[i]);
  return linear(hidden, `${layer}.mlp.down_proj`, params);
}

/* Compute the logits (T, vocabulary) of tokens (T,). */
function forward(params, tokens, keep) {
  const embedding = params["model.embed_tokens"];
  const D = config.hidden_size;
  const x = new Float32Array(tokens.length * D);
  tokens.forEach((token, t) => x.set(embedding.data.subarray(token * D, (token + 1) * D), t * D));
  const add = (y) => y.forEach((value, i) => { x[i] += value; });
  for (let i = 0; i < config.num_hidden_layers; i++) {
    const layer = `model.layers.${i}`;
    add(attention(rmsNorm(x, params[`${layer}.input_layernorm`]), layer, params, keep));
    add(mlp(rmsNorm(x, params[`${layer}.post_attention_layernorm`]), layer, params));
  }
  return matmul(rmsNorm(x, params["model.norm"]), embedding);
}

/* Mean negative log-likelihood, in nats, of the answer's tokens in one row [prompt, answer]. */
function loss(params, [prompt, answer]) {
  const tokens = [...encode(prompt + answer), config.eos_token_id];
  const start = prompt.length; // the first token of the answer
  const logits = forward(params, tokens.slice(0, -1));
  const V = config.vocab_size;
  let total = 0;
  // position t predicts token t + 1, so the first answer token is predicted at start − 1
  for (let t = start - 1; t < tokens.length - 1; t++) {
    const row = logits.subarray(t * V, (t + 1) * V);
    const largest = Math.max(...row);
    const sum = row.reduce((a, b) => a + Math.exp(b - largest), 0);
    total += Math.log(sum) + largest - row[tokens[t + 1]]; // −log p
  }
  return total / (tokens.length - start); // L = −mean(log p[target])
}

// 5. A token is a byte of text.

const encode = (text) => [...new TextEncoder().encode(text)];
const LENGTH = 24; // tokens of an answer

/* Continue the prompt: one {token, p} per step, where p has the probabilities of all tokens. */
function* generate(params, prompt) {
  const tokens = encode(prompt);
  for (let n = 0; n < LENGTH; n++) {
    const p = softmax(forward(params, tokens).slice(-config.vocab_size));
    const token = p.indexOf(Math.max(...p));
    yield { token, p };
    if (token === config.eos_token_id) return;
    tokens.push(token);
  }
}

// 7. Merging, and rounding the result to the bits of the base again

/* ΔW = (α/r)·BA of one projection. */
function deltaW(path, params) {
  const [A, B] = [params[`${path}.lora_A`], params[`${path}.lora_B`]];
  const [rank, inputs] = A.shape;
  return Float32Array.from({ length: B.shape[0] * inputs }, (_, n) => {
    const [o, i] = [Math.floor(n / inputs), n % inputs];
    let sum = 0;
    for (let k = 0; k < rank; k++) sum += B.data[o * rank + k] * A.data[k * inputs + i];
    return f32(params.alpha / RANK) * f32(sum);
  });
}

/* W' = W₀ + (α/r)·BA   (LoRA, Sec. 4), a dense weight */
function mergeWeight(path, params) {
  const delta = deltaW(path, params);
  const { shape } = params[path];
  return { shape, data: dense(params[path]).map((w, i) => w + delta[i]) };
}

/* All weights for the settings {step, alpha, rank, bits, merged, switches}. */
function setUp(settings) {
  const params = { ...baseIn(settings.bits), ...adaptersAt(settings), alpha: settings.alpha };
  if (!settings.merged) return params;
  for (const path of PATHS.filter((name) => `${name}.lora_A` in params)) {
    params[path] = quantizeWeight(mergeWeight(path, params), settings.bits);
    delete params[`${path}.lora_A`];
    delete params[`${path}.lora_B`];
  }
  return params;
}
