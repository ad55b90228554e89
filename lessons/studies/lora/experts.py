# %% [markdown]
# # LoRA on experts
#
# **The question.** A mixture of experts keeps most of its weights in a few three-dimensional
# parameters. What does a usual LoRA adapt there? And how should the experts be adapted: all of
# them, each with its own pair, and with a frozen router?
#
# In Mixtral (Jiang et al. 2024), a router sends each token to two of eight MLPs, the experts. In
# transformers 5, the experts of a layer are two parameters, `gate_up_proj` (E, 2F, D) and
# `down_proj` (E, D, F). PEFT adapts such parameters by `target_parameters`.
#
# **Continues:** [lesson 8](../../08_the_settings.py).
#
# **Time:** 10 seconds to run, fifteen minutes to read. **You need:** lessons 5 and 8.

# %%
import matplotlib.pyplot as plt
import numpy as np

from minilora import LoraConfig, lora, nf4
from minilora.layers import swiglu, value_and_grad
from minilora.lessons.helpers import common
from minilora.lessons.helpers.common import HOLDS, OPEN, QUICK, agrees, claim, of, short
from minilora.lessons.studies.lora import experts_sweep as experts
from minilora.tree import flatten, num_parameters

model = experts.load()
layer = model.base["model"]["layers"]["0"]["mlp"]

# %% [markdown]
# ## One token through a layer
#
# The base is made for this study, with 0.15 million parameters: `micro`, whose MLPs are cut into
# eight experts (`pretrain` in `experts_sweep.py`). With the router's scores s = Gx, a token x gets
#
# $$y = \sum_{e \in \text{top}\,2} w_e\, D_e\, \mathrm{swiglu}(U_e x), \qquad
# w = \mathrm{softmax}(s_e : e \in \text{top}\,2)$$
#
# In words: the two experts with the highest scores compute the token, and their outputs are added
# with weights that sum to 1. Only the weights have a gradient with respect to G, not the choice.
#
# **Predict.** An adapter has A and B for `gate_up_proj`, one pair for each expert. A batch has no
# token for expert 5. What is the gradient of its B?


# %%
def one_token(x, node):
    """Compute the mixture of experts of one token: (D,) -> (D,)."""
    scores = node["gate"]["weight"] @ x
    best = np.argsort(-scores)[: experts.TOP_K]
    weights = np.exp(scores[best])
    y = np.zeros_like(x)
    for e, weight in zip(best, weights / weights.sum()):
        gate, up = np.split(node["experts"]["gate_up_proj"][e] @ x, 2)
        y += weight * (node["experts"]["down_proj"][e] @ swiglu(gate, up))
    return y


x = np.random.default_rng(0).standard_normal((5, 48), np.float32)
together = experts.mixture(x, layer, model.ops, [])
alone = np.array([one_token(token, layer) for token in x])

batch = common.batch_of(common.questions()[:1])
few = {name: w[:, :4] for name, w in batch.items()} | {"mask": np.ones((1, 4), "f4")}
start = experts.new_adapters(model, 0, **experts.WAYS["experts and routers"])
_, grads = value_and_grad(experts.loss)(start, model, few)
of_few = experts.sizes(grads, lambda pair: pair["lora_B"])
of_routers = [g for path, g in flatten(grads).items() if path.endswith("gate.weight")]
counts = experts.choices(model, few).sum(axis=1)
idle = counts == 0
print(f"four tokens: none for {idle.sum()} of {idle.size} experts")
print(f"their gradients: {of_few[idle].max()}, others: from {of_few[~idle].min():.1e}")

# %% [markdown]
# **Answer.** Exactly 0. Such an expert is not trained in this step, and no loss curve shows it.
#
# ## What a usual LoRA reaches
#
# `target_modules` names modules with a two-dimensional weight. Fused experts are parameters of one
# module, and the router is one, too.
#
# **Predict.** Which share of a model's parameters gets no adapter if all projections with a name
# of their own are targets, here and in Qwen3-30B-A3B?

# %%
adapters = lora.init(model.base, LoraConfig(target_modules=experts.ATTENTION), 0)
reached = [path for path in flatten(adapters) if path.endswith("lora_A")]
weights = flatten(model.base).items()
micro = [sum(w.size for path, w in weights if part in path) for part in ("_attn", ".experts.", "")]
D, F, E, L = 2048, 768, 128, 48  # Qwen3-30B-A3B: width, hidden units, experts, layers
attention, mlp = L * D * 2 * (4096 + 512), L * E * 3 * F * D  # q and o, k and v
rest = 2 * 151_936 * D + D + L * (2 * D + 2 * 128 + E * D)  # embedding, head, norms, routers
qwen = [attention, mlp, attention + mlp + rest]
for name, (a, b, whole) in {"this base": micro, "Qwen3-30B-A3B": qwen}.items():
    print(f"{name}: attention {a / whole:.1%}, experts {b / whole:.1%}")

# %% [markdown]
# **Answer.** 82 % here, and 97 % there: only attention is reached. What PEFT makes of other names
# depends on the model. For Mixtral (PEFT 0.21, transformers 5.24; shown in `tests/peers`),
#
# - Llama's seven names adapt attention only. Those of the MLP match nothing, and are ignored,
#   because others match.
# - `w1`, `w2` and `w3`, as the matrices of an expert were once called, are translated into
#   `target_parameters`.
# - `all-linear` adapts attention, the experts, and the routers.
#
# So look at the number of trained parameters before a run. (The logits and gradients of this file
# are those of Mixtral and PEFT, which stores A expert by expert, (E·r, in), but B rank by rank.)
#
# ## One budget
#
# Four ways train 9,216 parameters each: attention at r = 8, every expert at r = 2, one pair of rank
# 16 whose ΔW is added to all experts of a layer, or half of the first and half of the second. A run
# is 60 steps of 8 rows of the questions, at the best of four rates for another seed.
#
# Three ways have the rate of "every expert". One trains the routers, too. Two adapt only two of a
# layer's experts: those with the most tokens of the task (MoE-Sieve, Manzoni 2026) or the fewest.
#
# **Predict.** Does one pair for all experts do worse than a pair for each? And do the two experts
# with the most tokens do as well as all eight?

# %%
# Picture
sweep = common.read_sweep("experts")


def runs(way, column="loss"):
    """Return a column of the runs of a way at its rate, one number per seed."""
    every = of(sweep, column, way=way, rate=experts.BEST[way])
    return np.array(every[-len(experts.SEEDS) :])  # without the seed that chose the rate


_, axes = plt.subplots(figsize=(6, 2.6), layout="constrained")
for way in reversed(experts.WAYS):
    axes.semilogx(runs(way), [way] * len(experts.SEEDS), "o", color="C0", alpha=0.5)
axes.set_xlabel("held-out loss, in nats per token; a dot is a seed")
plt.show()

# %%
# Table
most, fewest = "two experts, most tokens", "two experts, fewest tokens"
verdicts = [
    claim(f"loss of {one} / {other}", np.log(runs(one) / runs(other)), times=True, digits=2)
    for one, other in (
        ("experts", "attention"),
        ("attention", "attention and experts"),
        (most, "experts"),
        (fewest, most),
        ("experts", "experts and routers"),
    )
]
ratios = np.log(runs("one pair for all experts") / runs("experts"))
same = claim("one pair / experts: within 10 %", ratios, np.log(0.9), np.log(1.1), times=True)

# %% [markdown]
# **Answer.** One pair for all is as good as a pair for each, within 10 %. The two experts with most
# tokens are not as good as all: their loss is 1.6 to 1.8 times as high, with a quarter of the
# parameters. But they are a better choice than the two with the fewest tokens.
#
# At equal parameters, the experts have a higher loss than attention: the task is to copy words in
# another order, and attention decides from where (as in [Where to apply it](where_to_apply.py)).
# Whether attention and experts together are better than attention is not shown. Training the
# routers, too, 1,152 more parameters at a tenth of the rate, lowers the loss by 1 to 8 %.
#
# ## Experts that get few tokens
#
# **Predict.** Does an expert with half of the tokens of another have half of its ΔW, after training
# with AdamW?

# %%
# Table
tokens = experts.choices(model, common.batch_of(common.questions()[:100])).sum(axis=1)
busiest = np.sort(tokens)[:, -2:].sum() / tokens.sum()
print(f"the two busiest of a layer's eight experts get {100 * busiest:.0f} % of the tokens")
power = claim("‖ΔW‖ ∝ tokens to the power", runs("experts", "slope"), above=0, below=1)

# %% [markdown]
# **Answer.** More than half: ‖ΔW‖ grows with the tokens, but by less than in proportion. AdamW
# divides each gradient by its usual size, which hides how many tokens are behind it. (Why ‖ΔW‖
# grows at all is not shown. Few tokens may give a direction that is less constant.)
#
# The tokens differ little here: the base was trained to use its experts equally often, and still
# does. MoE-Sieve reports the opposite, that a few experts handle most tokens.
#
# ## The bytes
#
# A block of NF4 is 64 weights, one after another in memory. If 2F·D and D·F are multiples of 64,
# each expert is a whole number of blocks, and no two experts share a scale.
#
# **Predict.** If "4 bits" means modules with a matrix, and so only attention, how many of the 61 GB
# of Qwen3-30B-A3B are saved? And which is larger at r = 8, LoRA of attention or of all experts?

# %%
# Table
w = layer["experts"]["gate_up_proj"]
together_4bit = nf4.quantize(w).dequantize()
apart_4bit = np.stack([nf4.quantize(expert).dequantize() for expert in w])
saved = (16 - 4.5) / 8 / 1e9  # GB per weight
print(f"NF4 saves {saved * attention:.1f} GB of attention, and {saved * mlp:.1f} GB of experts")
factors = [4 * D + 2 * (4096 + 512), E * (2 * D + 3 * F)]  # per layer, at r = 1
print("LoRA, r = 8: {:.2f} GB, {:.2f} GB".format(*(4 * 8 * L * n / 1e9 for n in factors)))

# %% [markdown]
# **Answer.** 1.3 GB, or 2 %. At the same rank, LoRA of all experts is 47 times as large as that of
# attention, and in training it has a gradient and two averages per number, too.
#
# ## What was shown
#
# On a mixture of 0.15 million parameters (eight experts, two per token; a copying task, 60 steps,
# eight seeds), one pair for all experts is as good as one for each. **Holds here:** the experts
# with the most tokens are a better choice than those with the fewest, and training the routers
# lowers the loss a little. **Does not hold here:** that a quarter of the experts is as good as all,
# but the tokens of this base are spread evenly. **Not shown either way:** whether attention needs
# the experts. On a task of knowledge, attention and the experts may change places.
#
# **What to try.**
#
# 1. `slice(-2, None)` in `experts_sweep.py`: adapt four experts, and run the sweep.
# 2. `balance=0.01` in `pretrain`: 0, and make the base again. How unequal do the tokens become?
# 3. `TrainConfig` in `run`: add `also_train_lr_scale=1.0`, the rate of A and B for the routers.
#
# **Where to stop with a debugger.** `mixture` and `adapted` in `experts_sweep.py`.
#
# **Exercises.** lora-count, one-file-mlp.
#
# **Further reading.** Jiang et al. 2024, *Mixtral of Experts*:
# [arXiv:2401.04088](https://arxiv.org/abs/2401.04088). Fedus et al. 2021, *Switch Transformers*:
# [arXiv:2101.03961](https://arxiv.org/abs/2101.03961). Komatsuzaki et al. 2022, *Sparse Upcycling*:
# [arXiv:2212.05055](https://arxiv.org/abs/2212.05055). Manzoni 2026, *MoE-Sieve*:
# [arXiv:2603.24044](https://arxiv.org/abs/2603.24044).

# %%
# Checks
assert np.abs(together - alone).max() < 1e-5 * np.abs(alone).max(), "one token and all: the same"
assert not of_few[idle].any() and of_few[~idle].all(), "no token, no gradient"
assert [g.any() for g in of_routers] == [True] * 3, "the weights have a gradient with respect to G"
assert len(reached) == 12 and all(".self_attn." in path for path in reached), "only attention"
assert [round(1 - a / n, 2) for a, _, n in (micro, qwen)] == [0.82, 0.97], "not reached"
assert abs(whole / 30.5e9 - 1) < 0.01 and factors[1] // factors[0] == 47, "Qwen3-30B-A3B"
for way in experts.TUNED:
    n = num_parameters(experts.new_adapters(model, 0, **experts.WAYS[way]))
    assert n == 9216, f"{way}: {n} parameters are not the budget"
    tried = [of(sweep, "loss", way=way, rate=rate, seed=9)[0] for rate in experts.RATES]
    assert experts.RATES[np.argmin(tried)] == experts.BEST[way], f"{way}: not the best rate"
assert verdicts == [HOLDS, OPEN, HOLDS, HOLDS, HOLDS], "another verdict"
assert same == power == HOLDS and busiest < 0.3, "one pair is as good; ‖ΔW‖; even tokens"
assert np.array_equal(together_4bit, apart_4bit), "no block may have weights of two experts"
for way in ("experts", fewest):  # two runs of the sweep again
    again = experts.run((way, experts.BEST[way], 0), short(60, 5))["loss"]
    assert QUICK or agrees(again, runs(way), runs(most)), f"{way}: {again}"
