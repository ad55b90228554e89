"""Make the conformance kit: inputs, expected results in float64, and the results of known mistakes.

    python -m lessons.conformance.make lessons/conformance/kit

All numbers come from lesson 0, run in float64 (NF4's codes in float32, as everywhere), and from the
equations below. The package computes none of them. The known mistakes are lesson 0 with one line
changed, or an adapter that is read wrongly.
"""

import contextlib
import io
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
from autograd import value_and_grad
from autograd.tracer import getval

from lessons.conformance.check import bound_of, sample, wrong

VERSION = "3"
LESSON = Path(__file__).parents[1] / "00_qlora_in_one_file.py"
PROMPTS = (
    "Ada keeps a pink kite in the barn. Who? ",
    "Tom keeps a blue drum in the loft. Who, what, where?",
    "Dot keeps a teal doll in the barn. What? The doll, a",
)
ROWS = (
    ("Ada keeps a pink kite in the barn. Who, what, where?", " Ada, pink kite, barn."),
    ("Gus keeps a jade harp in the yard. Who, what, where?", " Gus, jade harp, yard."),
)
SHORT_ROW = ("Fay keeps a gold coin in the hall. Who?", " Fay.")
LAYER, PATH = "model.layers.0", "model.layers.1.self_attn.v_proj"
RATES = (1e-3, 2e-3, 1.5e-3)  # of three steps of AdamW
MAX_NORMS = (1.0, 1.0, 100.0)  # the third gradient is not clipped
ADAMW_RATE = 0.01  # of twelve steps on given gradients


def lesson(changes=(), until="# ## 6. Training", number=np.float64):
    """Return the names of lesson 0 up to a heading, with some of its text changed.

    `number` is the type in which PARTS compute; NF4's codes come from float32 in any case.
    """
    text, found, _ = LESSON.read_text("utf-8").partition(until)
    assert found, "lesson 0 has changed"
    for old, new in changes:
        assert text.count(old) == 1, f"lesson 0 has {text.count(old)} times: {old}"
        text = text.replace(old, new)
    names = {"__name__": "__main__", "getval": getval}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(text, str(LESSON), "exec"), names)
    names["dense_base"] = {n: number(w) for n, w in names["dense_base"].items()}
    return names | {"number": number}


def tokens(text):
    return np.array([list(text.encode())])


# --------------------------------------------------------------------------- what a port is given


def inputs():
    """Return {name: array} of all that a port is given, besides the model."""
    rng = np.random.default_rng(2026)
    names = lesson()
    values = names["NF4"]
    midpoints = (values[:-1] + values[1:]) / 2
    ties = np.concatenate([midpoints, -midpoints, [1], np.zeros(33)]).astype(np.float32)
    # with this absmax, 14 numbers next to a midpoint have another code if they are divided by it
    absmax = np.float32(0.98975)
    near = midpoints * absmax
    beside = [np.nextafter(near, np.float32(side)) for side in (-9, 9)]
    near_ties = np.concatenate([near, *beside, [absmax], np.zeros(18)]).astype(np.float32)
    constant = np.full(64, 0.37, np.float32)
    rows = [np.zeros(64, np.float32), constant, -constant, ties * np.float32(0.5), near_ties]
    sizes = np.exp(rng.normal(0, 1, 300)).astype(np.float32)[:, None]  # 300 blocks: 256 and 44
    given = {
        "nf4/normal": rng.normal(0, 0.02, (32, 64)),
        "nf4/ties": ties[None],
        "nf4/special": np.stack(rows),
        "nf4/many": sizes * rng.normal(0, 1, (300, 64)),
        "base/rope": rng.normal(0, 1, (1, 1, 7, 16)),
        "base/x": rng.normal(0, 1, (1, 9, 48)) * np.logspace(-4, 1, 9)[:, None],  # ε shows
    }
    for i, prompt in enumerate(PROMPTS):
        given[f"base/prompt{i}"] = tokens(prompt)[0]
    for i, (prompt, answer) in enumerate((*ROWS, SHORT_ROW)):
        given[f"training/row{i}"] = np.array([*(prompt + answer).encode(), 255])
    given["training/start"] = np.array([len(ROWS[0][0])])  # the first token of an answer
    given["training/start2"] = np.array([len(SHORT_ROW[0])])
    for path, w in names["dense_base"].items():
        if "_proj" in path:
            A = rng.uniform(-1, 1, (8, w.shape[1])) / np.sqrt(w.shape[1])
            given |= {f"{path}.lora_A": A, f"{path}.lora_B": rng.normal(0, 0.05, (w.shape[0], 8))}
    given["training/adamw/start"] = rng.normal(0, 1, 16)
    sizes = np.array([0, *np.logspace(-9, 1, 15)])  # zero shows weight decay, 1e-8 shows ε
    given["training/adamw/gradients"] = sizes * rng.normal(0, 1, (12, 16)) ** 3
    whole = {name: w if w.dtype.kind == "i" else np.float32(w) for name, w in given.items()}
    return {name: np.int32(w) if w.dtype.kind == "i" else w for name, w in whole.items()}


def factors(names, given):
    return {name: names["number"](w) for name, w in given.items() if ".lora_" in name}


# ------------------------------------------------------------- parts, in the order of lesson 0


def nf4(names, given):
    """Codes, both levels of scales, and the weights that they stand for: bits."""
    found = {}
    for name in ("normal", "ties", "special", "many"):
        q = names["quantize"](given[f"nf4/{name}"])
        found[f"nf4/{name}/codes"] = np.stack([q.codes >> 4, q.codes & 15], axis=1).ravel()
        found[f"nf4/{name}/absmax_codes"] = q.absmax_codes
        found[f"nf4/{name}/nested_absmax"] = q.nested_absmax
        found[f"nf4/{name}/offset"] = np.array([q.offset])
        found[f"nf4/{name}/dequantized"] = names["dequantize"](q)
    return found


def base(names, given):
    """The parts of the dense base and its logits."""
    params, config, number = names["dense_base"], names["config"], names["number"]
    x = number(given["base/x"])
    norm = params[f"{LAYER}.input_layernorm"]
    found = {
        "base/rope": names["apply_rope"](number(given["base/rope"]), config["rope_theta"]),
        "base/norm": names["rms_norm"](x, norm, config),
        "base/attention": names["attention"](x, LAYER, params, config),
        "base/mlp": names["mlp"](x, LAYER, params),
    }
    for i in range(len(PROMPTS)):
        ids = given[f"base/prompt{i}"][None]
        found[f"base/logits{i}"] = names["forward"]({}, params, ids, config)[0, -1]
    return found


def training(names, given):
    """Loss and gradients at a point of a quantized base; norm, clipping, three steps of AdamW."""
    quantized = quantized_base(names)
    start = adapters = factors(names, given)
    step = step_of(names)
    m, v = dict.fromkeys(adapters, 0), dict.fromkeys(adapters, 0)
    found = {}
    for t, (rate, max_norm) in enumerate(zip(RATES, MAX_NORMS), start=1):
        loss, grads = value_and_grad(names["loss"])(adapters, quantized, ROWS, names["config"])
        if t == 1:
            found["training/loss"] = np.array([loss])
            found |= {f"training/grad/{name}": g for name, g in grads.items()}
            norm = np.sqrt(sum(np.sum(g * g) for g in grads.values()))
            found["training/norm"] = np.array([norm])
        adapters, m, v = step(adapters, grads, m, v, t, rate, max_norm)
        for n in "AB":
            change = adapters[f"{PATH}.lora_{n}"] - start[f"{PATH}.lora_{n}"]
            found[f"training/step{t}/{n}"] = change
    return found


def uneven(names, given):
    """Loss and norm of two rows of different lengths, which lesson 0 takes one by one."""
    rows, quantized = (ROWS[0], SHORT_ROW), quantized_base(names)
    counts = names.get("counts") or [len(answer) + 1 for _, answer in rows]

    def loss(adapters):
        losses = [names["loss"](adapters, quantized, [row], names["config"]) for row in rows]
        return sum(n * x for n, x in zip(counts, losses)) / sum(counts)

    mean, grads = value_and_grad(loss)(factors(names, given))
    norm = np.sqrt(sum(np.sum(g * g) for g in grads.values()))
    return {"training/uneven/loss": np.array([mean]), "training/uneven/norm": np.array([norm])}


def adamw(names, given):
    """Return factors after steps of AdamW on given gradients, which are not clipped."""
    x, m, v = {"x": names["number"](given["training/adamw/start"])}, {"x": 0}, {"x": 0}
    step = step_of(names)
    for t, g in enumerate(names["number"](given["training/adamw/gradients"]), start=1):
        x, m, v = step(x, {"x": g}, m, v, t, ADAMW_RATE, np.inf)
    return {"training/adamw": x["x"]}


def quantized_base(names):
    return {path: stored(names, path, w) for path, w in names["dense_base"].items()}


def stored(names, path, w):
    """Return a weight as the base of training and merging has it: projections in NF4."""
    if "_proj" not in path or names.get("not_quantized"):
        return w
    return names["number"](names["dequantize"](names["quantize"](np.float32(w))))


def step_of(names):
    """Return one step of AdamW as a function: the loop's body in lesson 0, in float64."""
    text = LESSON.read_text("utf-8")
    body = re.search(r"    norm = np\.sqrt.*?(?=    if t == 1 or)", text, re.S).group()
    for old, new in names.get("step_changes", ()):
        assert body.count(old) == 1, old
        body = body.replace(old, new)
    body = body.replace("    t = step + 1\n", "").replace("rates[step]", "rate")
    constants = "BETA1, BETA2, EPS = 0.9, 0.999, 1e-8\n"
    head = "def step(adapters, grads, m, v, t, rate, MAX_NORM):\n"
    head += "    adapters, m, v = {**adapters}, {**m}, {**v}\n"
    scope = {"np": np}
    exec(constants + head + body + "    return adapters, m, v\n", scope)
    return scope["step"]


def merge(names, given):
    """W + (α/r)·BA in float64, its logits, and what is left when it is rounded to NF4 again."""
    adapters, config = factors(names, given), names["config"]
    merged, again, changed = {}, {}, 0
    for path, w in names["dense_base"].items():
        merged[path] = again[path] = w
        if "_proj" not in path:
            continue
        q = names["quantize"](np.float32(w))
        A, B = adapters[f"{path}.lora_A"], adapters[f"{path}.lora_B"]
        merged[path] = stored(names, path, w) + names["ALPHA"] / names["RANK"] * (B @ A)
        q_again = names["quantize"](np.float32(merged[path]))
        again[path] = names["number"](names["dequantize"](q_again))
        pairs = [np.stack([x.codes >> 4, x.codes & 15]) for x in (q, q_again)]
        changed += int(np.sum(pairs[0] != pairs[1]))
    ids = given["base/prompt1"][None]
    return {
        "merge/weight": merged[PATH],
        "merge/logits": names["forward"]({}, merged, ids, config)[0, -1],
        "merge/rounded": again[PATH],
        "merge/changed_codes": np.array([changed]),
        "merge/rounded_logits": names["forward"]({}, again, ids, config)[0, -1],
    }


def run():
    """Losses of lesson 0's own run: the first twenty, and those of the held-out rows at the end."""
    whole = lesson(until="# ## 7. Merging")
    held_out = whole["loss"](whole["adapters"], whole["base"], whole["held_out"], whole["config"])
    return {"run/losses": whole["losses"][:20], "run/held_out": np.array([held_out])}


# --------------------------------------------------------------- adapters in the format of PEFT

PREFIX = "base_model.model."
PLAIN = {
    "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "micro",
    "r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.0,
    "bias": "none", "use_rslora": False, "use_dora": False, "rank_pattern": {},
    "alpha_pattern": {}, "layers_to_transform": None, "fan_in_fan_out": False,
}  # fmt: skip
ADAPTERS = {  # name: (changes of the config, what it catches)
    "square": ({"r": 48, "lora_alpha": 48}, "a square A or B that is transposed"),
    "alpha": ({"r": 4, "lora_alpha": 24}, "α that is not divided by r"),
    "rslora": ({"r": 4, "use_rslora": True}, "α/r in place of α/√r"),
    "pattern": ({"rank_pattern": {"layers.1.self_attn.q_proj": 2}}, "one r for all projections"),
    "regex": (
        {"target_modules": r".*\.[02]\.self_attn\.(q|o)_proj|.*up_pro"},
        "a regular expression",
    ),
    "layer": ({"layers_to_transform": [1]}, "one layer only"),
    "zero": ({}, "B = 0: the base's logits"),
    "dora": ({"use_dora": True}, "the magnitudes of DoRA"),
}
LATER = {  # of version 3: made last, so that the numbers of the others stay
    "rslora_pattern": (
        {"r": 2, "use_rslora": True, "rank_pattern": {"layers.1.self_attn.q_proj": 1}},
        "√r of the config in place of that of rank_pattern",
    ),
    "whole_path": (
        {"r": 1, "target_modules": r"model\.layers\.1\.self_attn\.v_proj|layers\..*"},
        "an expression that matches the end of a path, not the whole",
    ),
}
REFUSED = {
    "other_base": "its factors do not fit this base",
    "unknown": "its config has a field that changes the result, and that nobody knows",
    "nan": "one of its numbers is NaN",
    "missing": "one of its B is not in the file",
}


def is_target(path, config):
    """Return whether a projection has an adapter, as in PEFT."""
    targets = config["target_modules"]
    if isinstance(targets, str):
        return re.fullmatch(targets, path) is not None
    layers = config["layers_to_transform"]
    in_layer = layers is None or int(path.split(".")[2]) in layers
    return in_layer and path.rpartition(".")[2] in targets


def rank_of(path, config):
    patterns = [r for name, r in config["rank_pattern"].items() if path.endswith(name)]
    return patterns[0] if patterns else config["r"]


def make_adapter(names, name, rng):
    """Return (config, {name: float32 array}) of an adapter."""
    config = PLAIN | (ADAPTERS | LATER).get(name, ({},))[0]
    tensors = {}
    for path, w in names["dense_base"].items():
        if "_proj" not in path or not is_target(path, config):
            continue
        r, (out, inputs) = rank_of(path, config), w.shape
        size = 0 if name == "zero" else 0.3 / np.sqrt(r)
        tensors[f"{PREFIX}{path}.lora_A.weight"] = rng.normal(0, 1 / np.sqrt(inputs), (r, inputs))
        tensors[f"{PREFIX}{path}.lora_B.weight"] = rng.normal(0, 1, (out, r)) * size
        if config["use_dora"]:
            lengths = np.linalg.norm(w, axis=1) * rng.uniform(0.8, 1.25, out)
            tensors[f"{PREFIX}{path}.lora_magnitude_vector"] = lengths
    tensors = {name: np.float32(w) for name, w in tensors.items()}
    last = list(tensors)[-1]
    if name == "other_base":
        tensors = {n: w[:, :32] if "lora_A" in n else w for n, w in tensors.items()}
    if name == "unknown":
        config["scale_by_norm"] = True
    if name == "nan":
        tensors[last][3, 2] = np.nan
    if name == "missing":
        del tensors[last]
    return config, tensors


MISTAKES = {  # what a port may do wrong with an adapter: (A, B, its config) -> (A, B, factor)
    "A is transposed": lambda A, B, c: (A.T if A.shape[0] == A.shape[1] else A, B, None),
    "B is transposed": lambda A, B, c: (A, B.T if B.shape[0] == B.shape[1] else B, None),
    "α is not divided by r": lambda A, B, c: (A, B, c["lora_alpha"]),
    "α is taken as 1: α/r is left out": lambda A, B, c: (A, B, 1.0),
    "use_rslora is ignored: α/r in place of α/√r": lambda A, B, c: (A, B, c["lora_alpha"] / len(A)),
    "α is divided by the config's r, not by that of rank_pattern": lambda A, B, c: (
        A, B, c["lora_alpha"] / c["r"]),
    "the adapter is not added": lambda A, B, c: (A, B, 0.0),
}  # fmt: skip


def effective(names, config, tensors, mistake=None, dora=True):
    """Return all weights, with ΔW = s·BA added: LoRA, Eq. 3; rsLoRA; DoRA, Eq. 5."""
    weights = dict(names["dense_base"])
    for path, w in names["dense_base"].items():
        key = f"{PREFIX}{path}.lora"
        if f"{key}_A.weight" not in tensors:
            continue
        A, B = (names["number"](tensors[f"{key}_{n}.weight"]) for n in "AB")
        s = config["lora_alpha"] / (len(A) ** 0.5 if config["use_rslora"] else len(A))
        if mistake:
            A, B, factor = mistake(A, B, config)
            s = s if factor is None else factor
        weights[path] = w + s * (B @ A)
        if config["use_dora"] and dora:
            lengths = np.linalg.norm(w if dora == "W" else weights[path], axis=1)
            magnitude = np.float64(tensors[f"{key}_magnitude_vector"])
            weights[path] = (magnitude / lengths)[:, None] * weights[path]
    return weights


def adapted(names, ids, config, tensors, **options):
    """Return the logits of the last token with an adapter."""
    weights = effective(names, config, tensors, **options)
    return names["forward"]({}, weights, ids, names["config"])[0, -1]


def lora(names, given, folder):
    """Logits of a prompt with each adapter; an adapter that must be refused gives 1."""
    rng = np.random.default_rng(7)
    ids = given["base/prompt1"][None]
    found, mistakes = {}, []
    for name in [*ADAPTERS, *REFUSED, *LATER]:
        config, tensors = make_adapter(names, name, rng)
        write_adapter(folder / "adapters" / name, config, tensors)
        if name in REFUSED:
            found[f"lora/{name}/refused"] = np.array([1])
            continue
        found[f"lora/{name}"] = adapted(names, ids, config, tensors)
        wrong_ways = {cause: {"mistake": mistake} for cause, mistake in MISTAKES.items()}
        if config["use_rslora"] and config["rank_pattern"]:
            wrong_ways["α is divided by √r of the config, not by that of rank_pattern"] = {
                "mistake": lambda A, B, c: (A, B, c["lora_alpha"] / c["r"] ** 0.5)
            }
        if config["use_dora"]:
            wrong_ways["DoRA's magnitudes are ignored"] = {"dora": False}
            wrong_ways["DoRA divides by ‖W‖, not by ‖W + s·BA‖"] = {"dora": "W"}
        for cause, options in wrong_ways.items():
            result = adapted(names, ids, config, tensors, **options)
            mistakes.append((f"lora/{name}", cause, result))
    return found, mistakes


def write_adapter(folder, config, tensors):
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1) + "\n")
    write_safetensors(folder / "adapter_model.safetensors", tensors)


# ------------------------------------------------------------------- lesson 0 with one line changed

TIES = "np.searchsorted((values[:-1] + values[1:]) / 2, x.ravel())"
ROTATED = "a, b = np.cos(angles), np.sin(angles), x[..., : hd // 2], x[..., hd // 2 :]"
MASK = "np.tri(x.shape[1], dtype=bool)"
CHANGES = (  # (part, cause, old text, new text)
    ("nf4", "ties round up: at a midpoint, the lower code is right",
     TIES, f'{TIES[:-1]}, side="right")'),
    ("nf4", "w is divided by the absmax: it is multiplied by 1/absmax, which is rounded",
     "blocks * (1 / np.maximum(absmax, np.float32(1e-38)))[:, None]",
     "blocks / np.maximum(absmax, np.float32(1e-38))[:, None]"),
    ("nf4", "the two codes of a byte are exchanged: the first one is in the high four bits",
     "codes[0::2] << 4 | codes[1::2]", "codes[1::2] << 4 | codes[0::2]"),
    ("nf4", "the absmax is signed: it is the largest magnitude",
     "absmax = np.max(np.abs(blocks), axis=1)", "absmax = np.max(blocks, axis=1)"),
    ("nf4", "the mean of the absmax is not subtracted before it is quantized",
     "offset = np.mean(absmax)", "offset = np.float32(0)"),
    ("nf4", "one scale for all absmax in place of one per 256",
     "nested = np.max(np.abs(blocks), axis=1)",
     "nested = np.full(len(blocks), np.max(np.abs(blocks)))"),
    ("nf4", "the 256 values have linear steps, not a decade per power of ten",
     "np.float32(10.0 ** (i - 6))", "np.float32(10.0 ** (-i))"),
    ("nf4", "the step of bitsandbytes to one of 65536 numbers is missing",
     "rounded = steps.astype(np.uint16) * np.float32(2) / np.float32(65535) - 1",
     "rounded = normalized"),
    ("base", "RoPE rotates neighbours (2j, 2j + 1) in their places, not (j, j + hd/2)",
     "np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)",
     "np.reshape(np.stack([x[..., 0::2] * cos - x[..., 1::2] * sin, "
     "x[..., 1::2] * cos + x[..., 0::2] * sin], axis=-1), x.shape)"),
    ("base", "RoPE rotates neighbours (2j, 2j + 1), not (j, j + hd/2)",
     ROTATED, "a, b = np.cos(angles), np.sin(angles), x[..., 0::2], x[..., 1::2]"),
    ("base", "RoPE rotates the other way",
     "[a * cos - b * sin, b * cos + a * sin]", "[a * cos + b * sin, b * cos - a * sin]"),
    ("base", "positions begin at 1",
     "np.arange(T, dtype=np.float32)", "np.arange(1, T + 1, dtype=np.float32)"),
    ("base", "the mean is subtracted: RMSNorm only divides",
     "x / np.sqrt(np.mean(x * x,",
     "(x - np.mean(x, axis=-1, keepdims=True)) / np.sqrt(np.mean(x * x,"),
    ("base", "ε is added to the root, not to the mean square",
     'keepdims=True) + config["rms_norm_eps"]) * weight',
     'keepdims=True)) / (1 + config["rms_norm_eps"]) * weight'),
    ("base", "the scores are divided by hd, not by √hd",
     'config["head_dim"] ** 0.5', 'config["head_dim"]'),
    ("base", "a token sees later tokens", MASK, "np.ones((x.shape[1],) * 2, dtype=bool)"),
    ("base", "a token does not see itself",
     MASK, "np.tri(x.shape[1], k=-1, dtype=bool) | (np.arange(x.shape[1]) == 0)"),
    ("base", "gate and up are exchanged", 'for n in ("gate", "up"))', 'for n in ("up", "gate"))'),
    ("training", "α is not divided by r", "h = h + ALPHA / RANK *", "h = h + ALPHA *"),
    ("training", "α/r is left out", "h = h + ALPHA / RANK *", "h = h +"),
    ("training", "the loss counts the prompt's tokens, too",
     "start = len(rows[0][0])  #", "start = 1  #"),
    ("training", "targets are shifted by one: position t predicts token t + 1",
     "[:, start - 1 :]", "[:, start - 2 : -1]"),
    ("training", "targets are not shifted: position t is compared with token t",
     "[tokens[:, start:]]", "[tokens[:, start - 1 : -1]]"),
    ("training", "the gradient through W, g W, is missing",
     "lambda g: g @ dense(w)", "lambda g: 0 * (g @ dense(w))"),
    ("training", "the gradient through the adapter, s·(g B)A, is missing",
     "(x @ A.T @ B.T)", "(getval(x) @ A.T @ B.T)"),
    ("training", "the loss is a sum, not a mean", "/ np.sum(one_hot)", ""),
    ("training", "the end token is no target", "[tokens[:, start:]]",
     "[tokens[:, start:]] * (np.arange(tokens.shape[1] - start) < tokens.shape[1] - start - 1)"
     "[None, :, None]"),
    ("merge", "α is not divided by r", "RANK, ALPHA = 8, 16", "RANK, ALPHA = 1, 16"),
    ("merge", "α/r is left out", "RANK, ALPHA = 8, 16", "RANK, ALPHA = 8, 8"),
)  # fmt: skip
MOVE = "m_hat / (np.sqrt(v_hat) + EPS)"
STEP_CHANGES = (  # of the loop
    ("the gradient is not clipped", "g * min(1, MAX_NORM / (norm + 1e-6))", "g"),
    ("each factor is clipped by its own norm", "norm + 1e-6))", "np.sqrt(np.sum(g * g)) + 1e-6))"),
    ("Adam's averages are not divided by 1 − βᵗ",
     "m[n] / (1 - BETA1**t), v[n] / (1 - BETA2**t)", "m[n], v[n]"),
    ("only the first average is divided by 1 − βᵗ", "v[n] / (1 - BETA2**t)", "v[n]"),
    ("ε is under the root", "(np.sqrt(v_hat) + EPS)", "np.sqrt(v_hat + EPS)"),
    ("the second average is of |g|, not of g²", "(1 - BETA2) * g * g", "(1 - BETA2) * abs(g)"),
    ("it is SGD: the step is not divided by √v̂", "/ (np.sqrt(v_hat) + EPS)", ""),
    ("the step has weight decay", MOVE, f"({MOVE} + 0.01 * adapters[n])"),
    ("weight decay is added to the gradient",
     "norm + 1e-6))", "norm + 1e-6)) + 0.01 * adapters[n]"),
    ("β₁ is not 0.9", "t = step + 1", "BETA1 = 0.95"),
    ("β₂ is not 0.999", "t = step + 1", "BETA2 = 0.99"),
    ("ε is not 1e-8", "t = step + 1", "EPS = 1e-6"),
)  # fmt: skip
UNEVEN = (  # cause, changes, how many targets each row counts for
    ("it is the mean of the rows' means, not of all targets", (), (1, 1)),
    ("padding counts as targets",
     [("255] for prompt", "255] + [255] * (74 - len(prompt + answer)) for prompt")], (23, 36)),
)  # fmt: skip
PARTS = {
    "nf4": nf4, "base": base, "training": training, "uneven": uneven, "adamw": adamw,
    "merge": merge,
}  # fmt: skip


def mistakes_of_lesson(given):
    """Yield (name of a result, cause, wrong result) of lesson 0 with one line changed."""
    for part, cause, old, new in CHANGES:
        with np.errstate(all="ignore"):
            for name, numbers in PARTS[part](lesson([(old, new)]), given).items():
                yield name, cause, numbers
    for part in ("training", "merge"):
        for name, numbers in PARTS[part](lesson() | {"not_quantized": True}, given).items():
            yield name, "the base is dense, not in NF4", numbers
    for cause, old, new in STEP_CHANGES:
        names = lesson() | {"step_changes": [(old, new)]}
        with np.errstate(all="ignore"):
            for name, numbers in (training(names, given) | adamw(names, given)).items():
                yield name, cause, numbers
    for cause, changes, counts in UNEVEN:
        for name, numbers in uneven(lesson(changes) | {"counts": counts}, given).items():
            yield name, cause, numbers


# ------------------------------------------------------------------------------------- the files


def write_safetensors(path, tensors):
    """Write float32, int32 and uint8 arrays: a length, a JSON header, the numbers."""
    kinds = {"float32": "F32", "int32": "I32", "uint8": "U8"}
    header, place = {}, 0
    for name, w in tensors.items():
        entry = {"dtype": kinds[w.dtype.name], "shape": list(w.shape)}
        header[name] = entry | {"data_offsets": [place, place + w.nbytes]}
        place += w.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    parts = [w.tobytes() for w in tensors.values()]
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))


def make(folder):
    """Write the kit into an empty folder."""
    given, names = inputs(), lesson()
    expected = {}
    for part in PARTS.values():
        expected |= part(names, given)
    expected |= run()
    results, wrong_results = lora(names, given, folder)
    expected |= results
    wrong_results += mistakes_of_lesson(given)
    expected = {n: w if w.dtype.kind == "u" else np.float64(w) for n, w in expected.items()}
    known = {}
    for name, cause, numbers in wrong_results:
        if "/grad/" in name and PATH not in name:
            continue  # one projection tells the cause
        if np.isfinite(numbers).all() and wrong(name, np.float64(numbers), expected[name]):
            known.setdefault(name, {})[cause] = [float(f"{x:.6g}") for x in sample(numbers)]
    micro = names["MICRO"]
    for name in ("config.json", "model.safetensors"):
        shutil.copy(micro / name, folder)
    write_safetensors(folder / "inputs.safetensors", given)
    stored = {n: w if w.dtype.kind == "u" else np.float32(w) for n, w in expected.items()}
    write_safetensors(folder / "expected.safetensors", stored)
    catches = {name: words for name, (_, words) in (ADAPTERS | LATER).items()} | REFUSED
    cases = {
        "version": VERSION, "prompts": PROMPTS, "rows": (*ROWS, SHORT_ROW), "rates": RATES,
        "max_norms": MAX_NORMS, "layer": LAYER, "path": PATH, "adapters": catches,
        "bounds": {name: bound_of(name) for name in expected}, "mistakes": known,
    }  # fmt: skip
    text = json.dumps(cases, ensure_ascii=False, separators=(",", ":"))
    (folder / "cases.json").write_text(text + "\n")


def main():
    folder = Path(sys.argv[1])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    make(folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
