"""Prompt tuning (Lester et al. 2021) and P-tuning (Liu et al. 2021): trained virtual tokens."""

from dataclasses import replace

import autograd.numpy as np

from ..layers import linear, virtual_tokens
from .method import Method, uniform

PROMPT = "prompt_embeddings"
ENCODER = "prompt_encoder"
LAYERS = ("0", "2", "4")  # of P-tuning's MLP, in PEFT's numbers: 1 and 3 are the ReLUs


def init(base, config, rng):
    """Create virtual tokens from random rows of the embedding, as they are stored.

    Gemma multiplies those of a text by √D, and a trained prompt has no such factor.
    """
    embedding = base["model"]["embed_tokens"]["weight"]
    n = config.num_virtual_tokens
    rows = rng.choice(embedding.shape[0], n, replace=n > embedding.shape[0])
    return {"model": {PROMPT: np.array(embedding[rows], "f4")}}


def init_p_tuning(base, config, rng):
    """Create virtual tokens N(0, 1), and an MLP of U(−1/√D, 1/√D) that transforms them."""
    D = base["model"]["embed_tokens"]["weight"].shape[1]
    bound = 1 / np.sqrt(D)
    embedding = rng.standard_normal((config.num_virtual_tokens, D), "f4")
    layers = {
        n: {"weight": uniform(rng, (D, D), bound), "bias": uniform(rng, (D,), bound)}
        for n in LAYERS
    }
    return {"model": {ENCODER: {"embedding": {"weight": embedding}, "mlp_head": layers}}}


def encode(node):
    """Compute the virtual tokens (n, D) of P-tuning from the node `model`."""
    # PEFT's MLP of three layers (Liu et al. 2021)
    x = node[ENCODER]["embedding"]["weight"]
    for n in LAYERS:
        x = linear(x if n == "0" else np.maximum(x, 0), node[ENCODER]["mlp_head"][n])
    return x


def pack(adapters):
    """Return the tensor of PEFT's file: the virtual tokens, without the network of P-tuning."""
    return {PROMPT: virtual_tokens(adapters["model"])}


def unpack(tensors, base, config):
    """Return the adapter in the tensors of a file."""
    return {"model": tensors}


METHOD = Method(
    "prompt",
    init,
    prompts={PROMPT: lambda node: node[PROMPT]},
    size="num_virtual_tokens",
    pack=pack,
    unpack=unpack,
    peft_fields={"peft_type": "PROMPT_TUNING", "num_transformer_submodules": 1},
    free_fields=(
        "num_attention_heads",
        "prompt_tuning_init",
        "prompt_tuning_init_text",
        "tokenizer_name_or_path",
        "tokenizer_kwargs",
    ),
)
P_TUNING = replace(
    METHOD,
    name="p-tuning",
    init=init_p_tuning,
    prompts={ENCODER: encode},
    float32=(PROMPT,),
    peft_fields={"peft_type": "P_TUNING", "num_transformer_submodules": 1},
    free_fields=(
        "num_attention_heads",
        "encoder_reparameterization_type",
        "encoder_hidden_size",
        "encoder_num_layers",
        "encoder_dropout",
    ),
)
