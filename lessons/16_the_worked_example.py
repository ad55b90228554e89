# %% [markdown]
# # 16. The worked example
#
# **The question.** What do the dozen lines hide that everybody writes, and what do these here hide?
# And before a run: what would an experienced eye question in its settings?
#
# Time: half a minute. You need: lessons 0, 2 and 6.

# %%
import io
from contextlib import redirect_stderr
from dataclasses import replace

import numpy as np
from checklist import Rows, questions
from common import QUICK, finetune, short, table

import minilora
from minilora import LoraConfig, TrainConfig, data, kernels, layers, lora, model
from minilora.training import gradient_at
from minilora.tree import flatten, get, num_parameters

# %% [markdown]
# ## The dozen lines
#
# With PEFT, transformers and bitsandbytes (text, as this lesson does not need them):
#
#     quantized = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",
#                                    bnb_4bit_use_double_quant=True)
#     model = AutoModelForCausalLM.from_pretrained("tiny", quantization_config=quantized)
#     model = prepare_model_for_kbit_training(model)
#     config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
#     model = get_peft_model(model, config)
#     trained = [p for p in model.parameters() if p.requires_grad]
#     optimizer = torch.optim.AdamW(trained, lr=4e-3, weight_decay=0)
#     for batch in loader:
#         model(**batch).loss.backward()
#         torch.nn.utils.clip_grad_norm_(trained, 1.0)
#         optimizer.step()
#         optimizer.zero_grad()
#     model.save_pretrained("adapters")
#     dense = model.merge_and_unload()
#
# And here. **Predict:** which line freezes the base? Which puts the model into training mode?

# %%
rng = np.random.default_rng(0)
config, base, tokenizer = minilora.load("micro")
frozen = minilora.quantize(base, "nf4-dq")
lora_config = LoraConfig(r=8, lora_alpha=16, target_modules=("all-linear",))
adapters, frozen = lora.init(frozen, lora_config, rng)
sound = TrainConfig(iters=200, batch_size=16, learning_rate=4e-3, mask_prompt=True)
settings = replace(sound, iters=short(200, 20))
rows = {split: data.load_rows("questions", split) for split in ("train", "valid")}
examples, _ = data.encode_rows(rows["train"], tokenizer, settings)
first = adapters
with redirect_stderr(io.StringIO()):  # the bar
    adapters, history = minilora.train(adapters, frozen, examples, config, settings)
dense = lora.merge(adapters, frozen)
print(f"{num_parameters(adapters):,} parameters trained, last loss {history[-1]['loss']:.4f}")

# %% [markdown]
# None freezes, and none sets a mode. What the other dozen does by changing an object, these do by
# passing arguments. Each of the following is hidden there in one word; here it can be looked at.
#
# ![The steps of a run: load a base, quantize it, create adapters, train them, then save them alone
# or merge them into a dense model.](../figures/drawings/run_steps.svg)
#
# **What is trained** (`requires_grad`, set by `get_peft_model`, and by hand for anything else). The
# gradient has the leaves of argument 0, and no others exist.

# %%
bins = [[example] for example in examples]
grads = gradient_at(adapters, frozen, bins, 0, config, settings, kernels.OPS)[1]
print(f"{len(flatten(grads))} gradients, beside {len(flatten(base))} arrays of the base")
assert flatten(grads).keys() == flatten(adapters).keys()
assert all(path.endswith(("lora_A", "lora_B")) for path in flatten(grads))

# %% [markdown]
# **What is changed** (`get_peft_model` puts its layers into the model that it was given; the model
# you had is another one now). Here the trees that went in are as they were, and share their arrays.

# %%
path = "model.layers.0.self_attn.q_proj"
assert not get(first, f"{path}.lora_B").any() and get(adapters, f"{path}.lora_B").any()
assert get(frozen, "model.embed_tokens.weight") is get(base, "model.embed_tokens.weight")
assert "lora_scaling" in get(frozen, path) and "lora_scaling" not in get(base, path)

# %% [markdown]
# **Whether dropout is on** (`model.train()`, `model.eval()`; a `from_pretrained` model starts in
# the second, a Trainer sets the first). Here dropout needs an `rng`, and only `train` passes one.

# %%
_, wet = lora.init(frozen, replace(lora_config, lora_dropout=0.5), np.random.default_rng(0))
batch = data.collate(bins[:4])
losses = [
    float(model.loss(adapters, wet, batch, config, kernels.OPS, rng=some))
    for some in (None, None, np.random.default_rng(1), np.random.default_rng(2))
]
print("without an rng twice, with two of them:", *(f"{x:.3f}" for x in losses))
assert losses[0] == losses[1] and len(set(losses)) == 3

# %% [markdown]
# **Which 4 bits** (`BitsAndBytesConfig(load_in_4bit=True)` alone means fp4, without double
# quantization). Here a scheme has one name, and the command takes `nf4-dq` unless told otherwise.

# %%
schemes = ("fp4", "nf4", "nf4-dq")
stored = {s: get(minilora.quantize(base, s), "model.layers.0.mlp.up_proj.weight") for s in schemes}
w = get(base, "model.layers.0.mlp.up_proj.weight")
error = {s: np.sqrt(np.mean((q.dequantize() - w) ** 2) / np.mean(w**2)) for s, q in stored.items()}
table(
    ["scheme", "relative error", "bytes"],
    [[s, f"{error[s]:.4f}", stored[s].nbytes] for s in schemes],
)
assert stored["fp4"].nbytes == stored["nf4"].nbytes > stored["nf4-dq"].nbytes
assert error["fp4"] > 1.15 * error["nf4-dq"]

# %% [markdown]
# **What merging makes** (`merge_and_unload` on a 4-bit model adds in floating point and rounds the
# sum to 4 bits again). Here merging is dense; rounding again is another call.
#
# ![Number lines of what can be stored near a weight. A small update moves the weight in float32
# and in bfloat16. In NF4 it is less than half of a gap, and the nearest value stays the
# same.](../figures/drawings/merging_precision.svg)
#
# **Predict:** how much of the update does it lose?

# %%
again = minilora.quantize(dense, "nf4-dq")
lost, update = [], []
for path in lora.adapted_paths(adapters):
    q, w = (get(tree, f"{path}.weight") for tree in (again, dense))
    lost.append(np.linalg.norm(q.dequantize() - w))
    update.append(np.linalg.norm(lora.delta(get(adapters, path), get(frozen, path))))
print(f"rounding again moves the weights by {np.mean(lost) / np.mean(update):.2f} of the update")
if not QUICK:
    assert 0.1 < np.mean(lost) / np.mean(update) < 1

# %% [markdown]
# ## What these lines hide
#
# Fairness asks for the other list. `minilora.loss` and `minilora.train` choose the optimized
# operations (`kernels/fused.py`) where they could take the reference implementation (`layers.py`);
# both give the same loss, and `MINILORA_PLAIN=1` chooses the reference. `train` hides autograd, and
# the order of the rows, a function of (seed, step). `load` hides a tokenizer of
# bytes. And limits are hidden: one machine, float32 to compute in, no device but the CPU.

# %%
plain, quick = (
    float(model.loss(adapters, frozen, batch, config, ops)) for ops in (layers, kernels.OPS)
)
print(f"loss by the reference {plain:.7f}, optimized {quick:.7f}")
assert abs(plain - quick) < 1e-4 * plain

# %% [markdown]
# ## The checklist
#
# `checklist.questions` looks at a run's settings before the run. It forbids nothing; each sentence
# says why it asks, and which lesson shows it.
#
# **Predict:** here is a "minimal QLoRA" as one finds it. How many questions?

# %%
facts = Rows(train=4000, held_out=200)
assert questions(lora_config, sound, "nf4-dq", config, facts) == []

found_lora = LoraConfig(r=64, lora_alpha=16, lora_dropout=0.1, target_modules=("q_proj", "v_proj"))
found_run = TrainConfig(iters=200, batch_size=16, learning_rate=5e-5, warmup_ratio=0.2)
asked = questions(found_lora, found_run, "fp4", config, Rows(train=4000, held_out=0, cut=12))
print(*asked, sep="\n")
assert len(asked) == 10 and all("lesson" in line for line in asked)

# %% [markdown]
# Each can be mended alone, and its question goes. So that no rule is only a rule, here are three of
# them run: rows that are cut, the loss over prompts, and the rate of full fine-tuning.
#
# **Predict:** each row has 75 tokens. What is lost if they are cut to 74? And which costs more, a
# rate 80 times too small, or counting the prompts as well?

# %%
assert {len(example.tokens) for example in examples} == {75}
shorter, cut = data.encode_rows(rows["train"], tokenizer, replace(settings, max_seq_length=74))
counted = np.mean([np.mean(example.mask) for example in examples])
print(f"{cut} rows are cut; the answers are {100 * counted:.0f} % of all tokens")
assert cut == len(shorter) and 0.3 < counted < 0.32
assert not any(set(example.tokens) & set(config.eos_token_id) for example in shorter)

runs = {
    "the recipe": {},
    "--max-seq-length 74": {"max_seq_length": 74},
    "--no-mask-prompt": {"mask_prompt": False},
    "--learning-rate 5e-5": {"learning_rate": 5e-5},
}
valid, _ = data.encode_rows(rows["valid"], tokenizer, settings)  # whole, and only the answers count
prompt, answer = (rows["valid"][0][part] for part in ("prompt", "completion"))
scores, said = {}, {}
for name, changes in runs.items():
    with redirect_stderr(io.StringIO()):
        run = finetune(iters=short(200, 15), **changes)
    scores[name] = minilora.evaluate(run.adapters, run.frozen, valid, config)
    ids = tokenizer.encode(prompt)
    answer_ids = minilora.generate(run.adapters, run.frozen, ids, config, max_tokens=40)
    said[name] = tokenizer.decode(list(answer_ids))
table(
    ["run", "loss of the answers", "exact match", "says"],
    [[name, f"{s['loss']:.3f}", f"{s['exact_match']:.3f}", repr(said[name])]
     for name, s in scores.items()],
)  # fmt: skip
if not QUICK:
    recipe, endless, prompts, slow = scores.values()
    assert recipe["exact_match"] > 0.9 and recipe["loss"] < 0.05 and said["the recipe"] == answer
    assert endless["exact_match"] < 0.1
    assert said["--max-seq-length 74"].startswith(answer) and said["--max-seq-length 74"] != answer
    assert prompts["exact_match"] < 0.7 and prompts["loss"] > 3 * recipe["loss"]
    assert slow["exact_match"] < 0.1 and slow["loss"] > 1

# %% [markdown]
# One token less, and the answers are right and never end. The small rate learns almost nothing in
# 200 steps. Counting the prompts costs most of the exact answers: two thirds of the tokens are then
# the prompt's, many of them fair draws that nobody can predict, and the answers' gradient is the
# smaller part of each step. None of these runs failed; each came to its end and
# would have written its files. That is why a list of questions is worth its lines.
#
# **Where to stop with a debugger.** `checklist.questions` (step through the rules with your own
# settings), `training.gradient_at` (what `value_and_grad` is asked for), `layers.linear` at
# `dropout` (where the `rng` is None, and where not).
#
# **Exercises.** lora-init, prompt-mask, test-merge, test-frozen, memory-estimate.
