"""A micro base with eight experts per layer, and LoRA on its attention, its experts, its routers.

About two and a half minutes of one core. A run is 60 steps of 8 rows of the questions.

The tree has the names and the layout of Mixtral in transformers: the `mlp` of a layer has a router,
`gate.weight` (E, D), and `experts` with the fused `gate_up_proj` (E, 2F, D) and `down_proj`
(E, D, F). A pair of LoRA is next to its weight: `gate_up` and `down`, A (E, r, in), B (E, out, r).

Letters: N tokens, D model width, E experts, F hidden units per expert, k experts per token.

    python -m minilora.lessons.studies.lora.experts_sweep    # make the base
"""

from functools import partial
from itertools import product
from pathlib import Path

import autograd.numpy as np

import minilora
from minilora import LoraConfig, Model, TrainConfig, data, kernels, lora
from minilora.data.tasks import notes
from minilora.data.tokenizer import ByteTokenizer
from minilora.formats import safetensors_file
from minilora.layers import Context, dense, embed, norm, rope_cos_sin, self_attention
from minilora.lessons.helpers import common, pretraining, rollouts
from minilora.model import lm_head
from minilora.tree import flatten, layer_of, named_leaves, overlay, unflatten

FILE = Path(__file__).with_suffix(".safetensors")
CONFIG = pretraining.RECIPES["micro"].config
EXPERTS, TOP_K = 8, 2
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FUSED = ("gate_up", "down")


def softmax(scores, among=1):
    """Return the softmax (N, E) of scores, among the experts where `among` is true; else 0."""
    odds = np.exp(scores - np.max(scores, axis=-1, keepdims=True)) * among
    return odds / np.sum(odds, axis=-1, keepdims=True)


def chosen(scores):
    """Return booleans (N, E): the k experts of each token."""
    return np.argsort(np.argsort(-scores)) < TOP_K  # its rank among the scores, from 0


def adapted(node, name):
    """Return a fused weight (E, out, in) with its LoRA; a single pair serves all experts."""
    w = dense(node[f"{name}_proj"])
    if name not in node:
        return w
    # W' = W + (α/r)·BA, per expert; a scaling of 0 leaves an expert without its pair
    pair = node[name]
    scaling = np.reshape(np.array(pair["lora_scaling"], "f4"), (-1, 1, 1))
    return w + scaling * np.matmul(pair["lora_B"], pair["lora_A"])


def mixture(x, node, ops, routes):
    """Apply the experts of a layer: (N, D) -> (N, D). Appends the router's scores to `routes`."""
    scores = np.dot(x, node["gate"]["weight"].T)
    routes.append(scores)
    gate_up, down = (adapted(node["experts"], name) for name in FUSED)
    E, D, F = down.shape
    # Here, each expert computes each token, and the others' weights are 0. Large models compute
    # only the k chosen experts of a token.
    h = np.reshape(np.dot(x, np.reshape(gate_up, (-1, D)).T), (-1, E, 2 * F))
    hidden = ops.swiglu(h[:, :, :F], h[:, :, F:]) * softmax(scores, chosen(scores))[:, :, None]
    return np.dot(np.reshape(hidden, (-1, E * F)), np.reshape(np.swapaxes(down, 1, 2), (-1, D)))


def states(base, model, tokens, segment_starts, routes):
    """Compute the normalized states (B, T, D) of the last layer: a Llama with another MLP."""
    x = embed(tokens, base["model"], model.config)
    rope = rope_cos_sin(np.arange(x.shape[1]) - segment_starts, model.config)
    ctx = Context(model.config, model.ops, rope, segment_starts)
    for node in base["model"]["layers"].values():
        h = norm(x, node, "input_layernorm", ctx)
        x = x + self_attention(h, node["self_attn"], ctx)
        h = norm(x, node, "post_attention_layernorm", ctx)
        h = mixture(np.reshape(h, (-1, h.shape[-1])), node["mlp"], model.ops, routes)
        x = x + np.reshape(h, x.shape)
    return norm(x, base["model"], "norm", ctx)


def loss(adapters, model, batch, balance=0.0):
    """Compute the mean cross-entropy in nats per target, plus `balance` times the imbalance."""
    base, routes = overlay(model.base, adapters), []
    x = states(base, model, batch["tokens"], batch["segment_starts"], routes)
    value = model.ops.cross_entropy(x, lm_head(base), batch["targets"], batch["mask"])
    return value + balance * sum(map(imbalance, routes)) if balance else value


def imbalance(scores):
    """Compute E·Σ share·probability over the experts: 1 if all are chosen equally often."""
    # the auxiliary loss of Switch Transformers (Fedus et al. 2021); the shares have no gradient
    share = np.mean(chosen(scores), axis=0) / TOP_K
    return EXPERTS * np.sum(share * np.mean(softmax(scores), axis=0))


def fit(adapters, model, examples, settings, balance=0.0):
    """Train the arrays of `adapters`; return them."""
    balanced = partial(loss, balance=balance)
    *_, last = rollouts.steps(balanced, adapters, model, examples, settings)
    return last.adapters


# ------------------------------------------------------------------------------------- the base


def pretrain(iters=240, batch_size=8):
    """Make the base out of `micro`, and train all of it on the notes; return its tree.

    It needs fewer steps than a new model. (In sparse upcycling, Komatsuzaki et al. 2022, an expert
    is a copy of the whole MLP.)
    """
    rng = np.random.default_rng(0)
    base = minilora.load("micro").model.base
    for node in base["model"]["layers"].values():
        node["mlp"] = upcycled(node["mlp"], rng)
    settings = pretraining.schedule(iters, batch_size, 4e-3)
    examples, _ = data.encode_rows(notes(12_000, seed=0)[0], ByteTokenizer(), settings)
    rows = data.pack_examples(examples, settings.max_seq_length)
    return fit(base, Model(CONFIG, base, kernels.ops), rows, settings, balance=0.01)


def upcycled(node, rng):
    """Deal an MLP's hidden units out to experts, each unit to two; the router is random."""
    axes = {"gate_proj": 0, "up_proj": 0, "down_proj": 1}  # of the hidden units
    gate, up, down = (np.split(node[k]["weight"], EXPERTS // 2, axis) for k, axis in axes.items())
    gate_up = np.stack([np.concatenate(pair) for pair in zip(gate, up)] * 2)
    # a part is chosen with k/E, by each of its two experts, and then gets about 1/k
    down = np.stack(down * 2) * np.float32(EXPERTS / 2)
    router = rng.standard_normal((EXPERTS, down.shape[1])) / down.shape[1] ** 0.5
    experts = {"gate_up_proj": gate_up, "down_proj": down}
    return {"gate": {"weight": router.astype("f4")}, "experts": experts}


def load():
    """Return the base as a Model."""
    leaves = {path: entry.read() for path, entry in safetensors_file.read_header(FILE).items()}
    return Model(CONFIG, unflatten(leaves), kernels.ops)


# ------------------------------------------------------------------------------------- the runs


WAYS = {  # the arguments of new_adapters
    "attention": {"attention": 8},
    "experts": {"experts": 2},
    "one pair for all experts": {"experts": 16, "pairs": 1},
    "attention and experts": {"attention": 4, "experts": 1},
    "experts and routers": {"experts": 2, "routers": True},
    "two experts, most tokens": {"experts": 2, "only": slice(-2, None)},
    "two experts, fewest tokens": {"experts": 2, "only": slice(2)},
}
TUNED = tuple(WAYS)[:4]
RATES = (4e-3, 1e-2, 2.5e-2, 6e-2)
BEST = dict.fromkeys(WAYS, 2.5e-2) | {"one pair for all experts": 1e-2}  # of seed 9
SEEDS = range(8)
JOBS = [
    *((way, rate, 9) for way, rate in product(TUNED, RATES)),
    *((way, BEST[way], seed) for seed, way in product(SEEDS, WAYS)),
]


def new_adapters(
    model, seed, attention=0, experts=0, pairs=EXPERTS, only=slice(None), routers=False
):  # fmt: skip
    """Return new adapters: A random, B zero, routers as in the base.

    attention, experts: ranks, 0 for none. pairs: per fused weight; 1 is one for all experts. only:
    the adapted ones of a layer's experts, in the order of their tokens of the task, the fewest
    first. routers: if they are trained.
    """
    rng = np.random.default_rng(seed)
    leaves = {}
    if attention:
        config = LoraConfig(r=attention, lora_alpha=2 * attention, target_modules=ATTENTION)
        leaves |= flatten(lora.init(model.base, config, rng))
    tokens = choices(model, common.batch_of(common.questions()[:100])).sum(axis=1)
    for path, w in named_leaves(model.base):
        node, _, name = path.removesuffix("_proj").rpartition(".")
        if experts and ".experts." in path:
            _, out, width = w.shape
            A = rng.uniform(-1, 1, (pairs, experts, width)) / width**0.5
            those = np.isin(np.arange(EXPERTS), np.argsort(tokens[layer_of(path)])[only])
            leaves[f"{node}.{name}.lora_A"] = A.astype("f4")
            leaves[f"{node}.{name}.lora_B"] = np.zeros((pairs, out, experts), "f4")
            leaves[f"{node}.{name}.lora_scaling"] = tuple(2.0 * those[:pairs])  # α/r
        if routers and path.endswith("mlp.gate.weight"):
            leaves[path] = w
    return unflatten(leaves)


def choices(model, batch):
    """Return booleans (layers, N, E): the experts that compute each token, without padding."""
    routes = []
    states(model.base, model, batch["tokens"], batch["segment_starts"], routes)
    real = np.cumsum(batch["mask"][:, ::-1], axis=1)[:, ::-1] > 0  # a target follows
    return np.array([chosen(scores)[np.ravel(real)] for scores in routes])


def sizes(adapters, of=lambda pair: np.matmul(pair["lora_B"], pair["lora_A"])):
    """Return (layers, E): the norm of of(pair), ΔW by default, of gate_up and down together."""
    found = []
    for node in adapters["model"]["layers"].values():
        parts = [of(node["mlp"]["experts"][name]) for name in FUSED]
        found.append(sum(np.sum(part * part, axis=(1, 2)) for part in parts) ** 0.5)
    return np.array(found)


def slope(tokens, size):
    """Return b of size ∝ tokensᵇ: a line through the logarithms, each layer around its mean."""
    x, y = (np.log(a) - np.mean(np.log(a), axis=1, keepdims=True) for a in (tokens, size))
    return float(np.sum(x * y) / np.sum(x * x))


def run(job, iters=60):
    """Return the row of a job: the held-out loss, and for "experts" the slope of ‖ΔW‖."""
    way, rate, seed = job
    model = load()
    adapters = new_adapters(model, seed, **WAYS[way])
    settings = TrainConfig(iters=iters, batch_size=8, learning_rate=rate, seed=seed)
    adapters = fit(adapters, model, common.questions(), settings)
    batch = common.batch_of(common.questions("valid")[:100])
    row = {"way": way, "rate": rate, "seed": seed, "loss": float(loss(adapters, model, batch))}
    tokens = choices(model, batch).sum(axis=1)
    row["slope"] = slope(tokens, sizes(adapters)) if way == "experts" else ""
    return row


if __name__ == "__main__":
    entries = {p: safetensors_file.entry("F16", w) for p, w in flatten(pretrain()).items()}
    safetensors_file.write(FILE, entries)
