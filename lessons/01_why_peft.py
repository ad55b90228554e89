# %% [markdown]
# # 1. Why PEFT
#
# **The question.** Where do the bytes of fine-tuning go, and which of them do LoRA and QLoRA take
# away?
#
# An estimate, computed: for the embedded base, where every entry is a real array that we can weigh,
# and for Llamas of 7 and 65 billion parameters, where it is arithmetic on shapes.
#
# Time: about a quarter of a minute. You need: lesson 0.

# %%
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
from autograd import make_vjp
from common import QUICK, figure, finetune, short, table
from sweeps.compare import file_bytes

import minilora
from minilora import LoraConfig, MethodConfig, ModelConfig, TrainConfig, data, lora, nf4
from minilora.batching import collate
from minilora.evaluation import memory
from minilora.evaluation.memory import nbytes
from minilora.evaluation.plot import LINES
from minilora.formats.hf_folder import shapes
from minilora.methods.registry import METHODS
from minilora.optim import adamw_init
from minilora.quant.schemes import is_projection
from minilora.tree import flatten, named_leaves, num_parameters, unflatten

rng = np.random.default_rng(0)
ALL = LoraConfig(r=8, lora_alpha=16, target_modules=("all-linear",))

# %% [markdown]
# ## What one step keeps
#
# **The question.** A step needs the weights, a gradient for each trained one, Adam's two moments
# for each trained one, and the activations that the backward pass reads again. How much of it
# disappears when only adapters are trained?
#
# ![Bytes per weight of the base in a training step: full fine-tuning 16, LoRA about 4, QLoRA about
# 0.5 for weights, and little for the adapters, their gradients and Adam's
# state.](../figures/drawings/step_memory.svg)
#
# **Predict:** for `tiny` and a batch of 16 × 64 tokens, is the whole step of LoRA ten times
# smaller than that of full fine-tuning? Twice? What of it does storing the base in 4 bits save?

# %%
config, base, words = minilora.load("tiny")
rows, settings = data.load_rows("notes", "train"), TrainConfig(max_seq_length=65)
examples = [e for e in data.encode_rows(rows, words, settings)[0] if len(e.tokens) == 65][:16]
batch = collate([[e] for e in examples])
assert batch["tokens"].shape == (16, 64)


def kept_by_a_step(trained, frozen):
    """Bytes that stand between forward and backward pass, as Python's allocator counts them."""

    def keep():
        return make_vjp(lambda t: minilora.loss(t, frozen, batch, config))(trained)

    keep()  # whatever is compiled or cached is so now
    tracemalloc.start()
    backward, loss = keep()
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return kept, backward(np.ones_like(loss))


ways = {
    "full": METHODS["full"](base, MethodConfig("full"), rng),
    "LoRA": lora.init(base, ALL, rng),
    "QLoRA": lora.init(minilora.quantize(base, "nf4-dq"), ALL, rng),
}
parts = {}
for name, (trained, frozen) in ways.items():
    kept, gradient = kept_by_a_step(trained, frozen)
    parts[name] = {
        "frozen": 0 if name == "full" else nbytes(frozen),  # every leaf is replaced
        "trained": nbytes(trained),
        "gradients": nbytes(gradient),
        "moments": nbytes(adamw_init(trained)),
        "activations": kept,
    }
    # What was weighed is what the estimate predicts: exactly for the arrays, nearly for the rest.
    predicted = memory.memory_estimate(trained, frozen, config, batch["tokens"].size)
    assert parts[name]["gradients"] == predicted["their gradients"] == 4 * num_parameters(trained)
    assert parts[name]["moments"] == predicted["Adam's two moments"] == 8 * num_parameters(trained)
    assert abs(kept / predicted["activations"] - 1) < 0.25

total = {name: sum(row.values()) for name, row in parts.items()}
cells = [[name, *row.values(), total[name]] for name, row in parts.items()]
table(["bytes", *parts["full"], "together"], cells)

# %% [markdown]
# All that is kept *for what is trained* (weights, gradients, moments: 16 bytes a parameter in
# float32) falls with the number of trained parameters, here eleven times. The base falls to less
# than a sixth in 4 bits (its embedding stays dense). But **LoRA makes no activation needless**: the
# gradient of A needs the same inputs as the gradient of W would. The quarter that is missing here
# is one array a layer, the input of `down_proj`, which `kernels.fused.mlp` computes again from
# `gate` and `up` (it does so for LoRA alone, but could for any method). And for a small model and a
# thousand tokens, activations are most of the ledger. So the rule "LoRA makes training fit" is
# about models whose weights outweigh their batch. Here it is not much of a rule.

# %%
for_trained = {name: row["trained"] + row["gradients"] + row["moments"]
               for name, row in parts.items()}  # fmt: skip
assert for_trained["full"] == 16 * num_parameters(base)
assert 10 < for_trained["full"] / for_trained["LoRA"] < 12
assert 6 < parts["LoRA"]["frozen"] / parts["QLoRA"]["frozen"] < 7
made_again = 4 * batch["tokens"].size * config.intermediate_size * config.num_hidden_layers
needed = parts["LoRA"]["activations"] + made_again
assert abs(needed / parts["full"]["activations"] - 1) < 0.02
assert parts["LoRA"]["activations"] > total["LoRA"] / 2
print(f"the whole step: LoRA's is {total['full'] / total['LoRA']:.2f} times smaller,")
print(f"QLoRA's {total['full'] / total['QLoRA']:.2f} times")
assert 1.3 < total["full"] / total["LoRA"] < total["full"] / total["QLoRA"] < 2

# %% [markdown]
# ## 7 and 65 billion parameters
#
# **The question.** The QLoRA paper (Dettmers et al. 2023, Sec. 1) says that fine-tuning LLaMA-65B
# in 16 bits takes more than 780 GB, and QLoRA less than 48 GB. Do the two follow from the shapes?
#
# `np.broadcast_to(0, shape)` is an array with a shape, a dtype and an `nbytes`, and no memory. A
# tree of them is a model on paper: `num_parameters` and `lora.target_paths` cannot tell it from a
# real one.
#
# **Predict:** 65 billion weights of 4 bits are 33 GB. What takes the rest of the 48?


# %%
def on_paper(width, hidden, layers, heads):
    """(config, base in 16 bits) of a first-generation LLaMA, without its memory."""
    config = ModelConfig(
        vocab_size=32000, hidden_size=width, intermediate_size=hidden, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads, head_dim=width // heads,
        tie_word_embeddings=False,
    )  # fmt: skip
    leaves = {path: np.broadcast_to(np.float16(0), s) for path, s in shapes(config).items()}
    return config, unflatten(leaves)


def lora_count(base, config):
    """Σ r·(in + out) over the adapted projections."""
    weights = flatten(base)
    paths = lora.target_paths(base, config)
    return sum(config.r * sum(weights[f"{path}.weight"].shape) for path in paths)


SEVEN = LoraConfig(r=64, lora_alpha=16, target_modules=("all-linear",))
config_7b, llama_7b = on_paper(4096, 11008, 32, 32)
config_65b, llama_65b = on_paper(8192, 22016, 80, 64)
# The formula first on what is real: it counts what lora.init makes.
assert lora_count(base, ALL) == num_parameters(ways["LoRA"][0])
assert num_parameters(llama_7b) == 6_738_415_616 and num_parameters(llama_65b) == 65_285_660_672
assert lora_count(llama_7b, LoraConfig(r=8)) == 4_194_304  # q_proj and v_proj
assert lora_count(llama_7b, SEVEN) == 159_907_840

# bits a weight: 4 for the code, 8 for the absmax of 64, 32 for the absmax of 256 absmaxes
bits = {"nf4": 4 + 32 / 64, "nf4-dq": 4 + 8 / 64 + 32 / (64 * 256)}  # QLoRA, Sec. 3
w = rng.standard_normal((4096, 4096), dtype="f4")
for scheme, expected in bits.items():
    stored = nf4.quantize(w, 64, double_quant=scheme == "nf4-dq")
    assert abs(8 * stored.nbytes / w.size - expected) < 1e-3


def on_paper_estimate(base, config, method, tokens=512):
    """{part: GB}: adapters and gradients in 16 bits, moments in 32; the frozen as `method` says."""
    n = num_parameters(base) if method == "full" else lora_count(base, SEVEN)
    low = {"full": 0, "LoRA": 16, "QLoRA, scales in 32 bits": bits["nf4"], "QLoRA": bits["nf4-dq"]}
    rest = 0 if method == "full" else 16
    bits_of = {path: low[method] if is_projection(path) else rest for path, _ in named_leaves(base)}
    frozen = sum(w.size * bits_of[path] / 8 for path, w in named_leaves(base))
    # with gradient checkpointing: one state a layer and token
    states = 2 * config.num_hidden_layers * config.hidden_size * tokens
    made = {"frozen": frozen, "trained": 2 * n, "gradients": 2 * n, "moments": 8 * n,
            "layers' inputs": states}  # fmt: skip
    return {part: size / 1e9 for part, size in made.items()}


methods = ("full", "LoRA", "QLoRA, scales in 32 bits", "QLoRA")
llamas = {"7B": (llama_7b, config_7b), "65B": (llama_65b, config_65b)}
paper = {(b, m): on_paper_estimate(*llamas[b], m) for b in llamas for m in methods}
sums = {key: sum(row.values()) for key, row in paper.items()}
cells = [[" ".join(key), *row.values(), sums[key]] for key, row in paper.items()]
cells = [[name, *(f"{size:.1f}" for size in sizes)] for name, *sizes in cells]
table(["GB, 512 tokens", *paper["7B", "full"], "together"], cells)
assert 780 < sums["65B", "full"] < 790
assert sums["65B", "LoRA"] > 48 and sums["65B", "QLoRA"] < 48
saved = sums["65B", "QLoRA, scales in 32 bits"] - sums["65B", "QLoRA"]
assert 2.9 < saved < 3.1  # "approximately 3 GB for a 65B model", QLoRA, Sec. 1

# %% [markdown]
# Twelve bytes a parameter (2 for the weight, 2 for its gradient, 8 for the moments) are the 780 GB.
# LoRA alone takes ten of the twelve away and leaves the two that the frozen weight needs, which is
# still too much for one card. Only fewer bits for the frozen weight get below 48 GB. What is left
# beside the 33 GB of codes is mostly the optimizer: adapters of r = 64 on all projections are
# 0.8 billion parameters themselves.
#
# Not in these sums: what a framework keeps beside them, and the activations of the one layer that
# is being recomputed. Below 48 GB there are a few GB of room and no more.

# %%
assert lora_count(llama_65b, SEVEN) == 799_539_200
codes = sum(w.size for p, w in named_leaves(llama_65b) if is_projection(p)) * bits["nf4-dq"] / 8
assert 33 < codes / 1e9 < 34
beside = {part: size for part, size in paper["65B", "QLoRA"].items() if part != "frozen"}
assert max(beside, key=beside.get) == "moments" and 2 < 48 - sums["65B", "QLoRA"] < 6

shades = ("#1f4e79", "#5a9a6f", "#d1751f", "#e9c46a", "#bbbbbb")
hatches = ("", "//", "..", "\\\\", "xx")
title = "A step of LLaMA-65B; full fine-tuning takes 784 GB. Dashed: 48 GB"
with figure("ledger", "GB", "", title, width=8, height=3) as axes:
    left = np.zeros(3)
    for part, shade, hatch in zip(paper["65B", "full"], shades, hatches):
        widths = np.array([paper["65B", m][part] for m in methods[1:]])
        axes.barh(methods[1:], widths, left=left, color=shade, hatch=hatch, label=part)
        left += widths
    for y, gb in enumerate(left):
        axes.text(gb + 4, y, f"{gb:.1f}", va="center")
    axes.axvline(48, color=LINES[0]["color"], linestyle="--", linewidth=1)
    axes.set(xlim=(0, 160))
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.legend(frameon=False, loc="lower right", fontsize=9)

# %% [markdown]
# ![Bars: the bytes of a step of LLaMA-65B, by part and by method](../figures/ledger.png)
#
# ## What is stored
#
# **The question.** The LoRA paper (Hu et al. 2021, Sec. 4.2) says that a checkpoint of GPT-3, r = 4
# on q and v, shrinks about 10,000 times, from 350 GB to 35 MB. What do we get?
#
# **Predict:** how large is the file of the adapter of `tiny` that we made above?

# %%
# 96 layers, q and v, r·(in + out) each
gpt3 = 96 * 2 * 4 * (12288 + 12288)
assert gpt3 == 18_874_368
print(f"GPT-3: {gpt3:,} parameters, {2 * gpt3 / 1e6:.1f} MB or {2 * gpt3 / 2**20:.1f} MiB")
assert 2 * gpt3 == 36 * 2**20 and 9_250 < 350e9 / (2 * gpt3) < 9_300

adapters, frozen = ways["LoRA"]
size = file_bytes(adapters, frozen, ALL, "tiny")
print(f"tiny: {size:,} bytes of file for {4 * num_parameters(adapters):,} bytes of numbers")
assert 0 < size - 4 * num_parameters(adapters) < 200 * len(flatten(adapters))  # names and shapes
print(f"a hundred tasks: {100 * nbytes(base) / 1e6:.0f} MB of models,", end=" ")
print(f"or {(nbytes(base) + 100 * size) / 1e6:.0f} MB of a base and adapters")

# %% [markdown]
# In 16 bits it is 36 MiB and some 9,300 times less: "35 MB" is 350 GB over a round 10,000. For
# `tiny` the gain is eleven times and not thousands: r·(in + out) over in·out is small where the
# matrices are large. PEFT is an argument about size, and it gets better with size.
#
# ## What is swapped
#
# **The question.** Two tasks, one base: what has to change in memory to go from one to the other?
#
# The second task has the same prompts and wants only the place.
#
# **Predict:** after both are trained, the same prompt is asked with the one adapter, the other, and
# the first again. Does anything of the base get written?


# %%
def place_only(row):
    """The row with nothing but the last of its answer's three parts."""
    return {**row, "completion": " " + row["completion"].rpartition(", ")[2]}


whole = {split: data.load_rows("questions", split) for split in ("train", "valid")}
tasks = {"whole": whole, "place": {split: [*map(place_only, r)] for split, r in whole.items()}}
iters = short(200, 60)
config, base, words = minilora.load("micro")
before = {path: w.tobytes() for path, w in named_leaves(base)}
pairs = {}
with tempfile.TemporaryDirectory() as folder:
    for name, split in tasks.items():
        run = finetune(ALL, rows=split["train"], held_out=split["valid"], iters=iters)
        minilora.save_adapter(Path(folder) / name, run.adapters, run.frozen, ALL, "micro")
        pairs[name] = minilora.load_adapter(Path(folder) / name, base)[:2]  # onto the one base

masked = TrainConfig(mask_prompt=True)
loss = {}
for used, (adapters, frozen) in pairs.items():
    for asked, split in tasks.items():
        held_out = data.encode_rows(split["valid"], words, masked)[0]
        score = minilora.evaluate(adapters, frozen, held_out, config)
        loss[used, asked] = score["loss"]
        right = score["exact_match"]
        print(f"{used:<5} asked for {asked:<5}: loss {score['loss']:.3f}, exact match {right:.1%}")
        assert right < 0.05 if used != asked else QUICK or right > 0.7

prompt = words.encode(whole["valid"][0]["prompt"])
said = []
for name in ("whole", "place", "whole"):
    said.append(words.decode(list(minilora.generate(*pairs[name], prompt, config, max_tokens=24))))
    print(f"{name:<6}", repr(said[-1]))
assert said[0] == said[2] != said[1]
for asked in tasks:
    assert loss[asked, asked] < min(loss[used, asked] for used in tasks if used != asked) / 2

# One base: the frozen trees hold the same arrays, not equal ones, and no byte of them was written.
one, two = (dict(named_leaves(frozen)) for _, frozen in pairs.values())
assert all(one[path] is w and two[path] is w for path, w in named_leaves(base))
assert all(w.tobytes() == before[path] for path, w in named_leaves(base))

# %% [markdown]
# To swap is to pass another small tree. Nothing is copied, nothing reloaded, and no byte of the
# base was written: that is why one server can hold one base and a thousand adapters.
#
# ![One frozen base is shared by three adapters. Each row of a batch names its adapter: the first
# row uses A1 and B1, the second A2 and B2, the third
# none.](../figures/drawings/one_base_many_adapters.svg)
#
# **Where to stop with a debugger.**
# - `memory.memory_estimate` (`minilora/evaluation/memory.py`): look at `activation_floats` for
#   `full` and for LoRA, and find the line that makes LoRA's larger.
# - `checkpoint.load_adapter`: look at `frozen` beside `base`; which leaves are new?
# - `layers.linear` with `MINILORA_PLAIN=1`: `trained` is all that differs between the two adapters.
#
# **Exercises.** memory-estimate, lora-count.
