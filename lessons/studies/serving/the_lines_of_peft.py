# %% [markdown]
# # The lines of PEFT
#
# **The question.** What do the usual lines of PEFT do behind the scenes, and what do the same lines
# of minilora do?
#
# The study [The checklist](../training/the_checklist.py) asks about the settings of a run before it
# starts.
#
# **Continues:** [lesson 4](../../04_merge_and_serve.py).
#
# **Time:** a few seconds to run, ten minutes to read. **You need:** lessons 0, 1 and 2.

# %%
from dataclasses import replace

import numpy as np

import minilora
from minilora import LoraConfig, TrainConfig, data
from minilora.lessons.helpers.common import short
from minilora.tree import arrays, get, num_parameters, overlay

# %% [markdown]
# ## The same run in both libraries
#
# With PEFT, transformers and bitsandbytes (shown as text, because the study does not need them):
#
# ```python
# quantized = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",
#                                bnb_4bit_use_double_quant=True)
# model = AutoModelForCausalLM.from_pretrained("micro", quantization_config=quantized)
# model = prepare_model_for_kbit_training(model)
# config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
# model = get_peft_model(model, config)
# model.print_trainable_parameters()
# trained = [p for p in model.parameters() if p.requires_grad]
# optimizer = torch.optim.AdamW(trained, lr=4e-3, weight_decay=0)
# for batch in loader:
#     model(**batch).loss.backward()
#     torch.nn.utils.clip_grad_norm_(trained, 1.0)
#     optimizer.step()
#     optimizer.zero_grad()
# model.save_pretrained("adapters")
# dense = model.merge_and_unload()
# ```
#
# In minilora several names are the same ([the whole list](../../guide/peft.md)). But in PEFT
# `model` is an object that changes; here the adapter and the base are trees of arrays, and the
# functions return new trees.
#
# **Predict.** A run in minilora calls `load`, `get_peft_model`, `train` and `merge`. Which of these
# lines freezes the base? Which one switches the model to training mode?

# %%
model, tokenizer = minilora.load("micro")
model = minilora.quantize(model, "nf4-dq")
lora_config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
first, model = minilora.get_peft_model(model, lora_config, rng=0)
minilora.print_trainable_parameters(first, model)
settings = TrainConfig(iters=short(200, 20), batch_size=16, learning_rate=4e-3, mask_prompt=True)
rows = minilora.load_rows("questions", "train")
examples, _ = minilora.encode_rows(rows, tokenizer, settings)
adapters, history = minilora.train(first, model, examples, settings)
dense = minilora.merge(adapters, model)
print(f"{num_parameters(adapters):,} parameters trained, last loss {history[-1]['loss']:.4f}")

# %% [markdown]
# **Answer.** None. In PEFT, `get_peft_model` sets `requires_grad`, and puts its layers into the
# model that it gets. In minilora, gradients are taken for the first argument only, so the second
# one is frozen (lesson 1 checks it). The base gets no array of the adapter: the adapter is a tree
# of its own. Dropout is on if a random generator is passed, and `train` passes one.
#
# ## Dropout
#
# In PEFT, `model.train()` switches dropout on and `model.eval()` switches it off. In minilora, it
# needs an `rng`.
#
# **Predict.** With dropout 0.5: is the loss without an `rng` the same twice? With two generators?

# %%
fresh, _ = minilora.get_peft_model(model, replace(lora_config, lora_dropout=0.5), rng=0)
with_dropout = overlay(fresh, arrays(adapters))  # its settings, and the trained factors
batch = data.collate([[example] for example in examples[:4]])
rngs = None, None, np.random.default_rng(1), np.random.default_rng(2)
losses = [float(minilora.loss(with_dropout, model, batch, rng=r)) for r in rngs]
print("twice without an rng, then with two of them:", *(f"{x:.3f}" for x in losses))

# %% [markdown]
# **Answer.** It is the same twice without one. The two generators give two other losses. (In
# PyTorch, one generator is always there.)
#
# ## 4 bits, and merging into them
#
# `BitsAndBytesConfig(load_in_4bit=True)` alone means fp4 without double quantization: lesson 2
# compares the errors of both codes and counts the bytes. In minilora a scheme has one
# name, and the command uses `nf4-dq` by default.
#
# On a 4-bit base, PEFT's `merge_and_unload` rounds the merged weight to 4 bits again and warns. In
# minilora, it returns a dense model, and `quantize` is a separate call: lesson 4 shows what
# rounding again loses of such an update.
#
# ## What minilora hides
#
# A model that `load` returns computes with the optimized operations (`kernels/fused.py`).
# `MINILORA_PLAIN=1` or `model._replace(ops=layers)` selects the reference (`layers.py`). `train`
# calls autograd and orders the rows by (seed, step). minilora runs on one machine, on the CPU.
#
# ## What was shown
#
# Several names are those of PEFT. PEFT changes an object. minilora returns new trees.
#
# **What to try.**
#
# 1. `target_modules="all-linear"`: write `["q_proj", "v_proj"]`. How many parameters are trained?
# 2. `"nf4-dq"`: use "int8". Is the last loss lower?
# 3. `lora_dropout=0.5`: use 0. Are the four losses equal?
#
# **Where to stop with a debugger.** `layers.linear` at `dropout` (where is the `rng` None?).
#
# **Exercises.** one-file-init-lora, prompt-mask, test-merge, test-frozen, memory-estimate.
#
# **Further reading.** QLoRA: [arXiv:2305.14314](https://arxiv.org/abs/2305.14314). PEFT's guide:
# [huggingface.co/docs/peft](https://huggingface.co/docs/peft).

# %%
# Checks
path = "model.layers.0.self_attn.q_proj"
assert not get(first, f"{path}.lora_B").any(), "the adapters that went in must be as they were"
assert get(adapters, f"{path}.lora_B").any(), "the adapters that came out must be trained"
assert list(get(model.base, path)) == ["weight"], "the base must not be changed"
assert losses[0] == losses[1], "without an rng, there must be no dropout"
assert len(set(losses)) == 3, "each rng must give another loss"
