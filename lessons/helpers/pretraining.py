"""Where the embedded bases come from: the same training loop, with the whole model as argument 0.

python -m minilora.lessons.helpers.pretraining micro --out DIR
"""

import argparse
import math
import sys
import time
from typing import NamedTuple

import numpy as np

from minilora import Model, kernels, train
from minilora.cli import report_error
from minilora.cli.arguments import Parser
from minilora.config import InputError, ModelConfig, TrainConfig
from minilora.data.encoding import encode_rows
from minilora.data.tasks import notes
from minilora.data.tokenizer import ByteTokenizer
from minilora.formats.files import require_new
from minilora.formats.hf_folder import shapes
from minilora.formats.pretrained import save_pretrained
from minilora.lessons.helpers.common import held_out_notes
from minilora.tree import unflatten


class Recipe(NamedTuple):
    """A base's shape and how it is trained: `notes` different rows, packed."""

    config: ModelConfig
    train: TrainConfig
    notes: int


def llama(width, hidden, layers, heads, kv_heads):
    """The configuration of a byte-level Llama with tied embeddings."""
    return ModelConfig(
        vocab_size=256, hidden_size=width, intermediate_size=hidden, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=width // heads,
        max_position_embeddings=512, eos_token_id=(255,),
    )  # fmt: skip


def schedule(iters, batch_size, learning_rate):
    """How both bases are trained: packed to 256 tokens, everything at one rate."""
    return TrainConfig(
        iters=iters, batch_size=batch_size, max_seq_length=256, learning_rate=learning_rate,
        warmup_ratio=0.03, weight_decay=0.1, adam_beta2=0.99, packing=True,
        also_train_lr_scale=1.0, steps_per_eval=200, val_batches=16,
    )  # fmt: skip


RECIPES = {
    "micro": Recipe(llama(48, 128, 3, 3, 3), schedule(1200, 16, 4e-3), 60_000),
    "tiny": Recipe(llama(128, 512, 4, 4, 2), schedule(1200, 16, 2e-3), 60_000),
}


def pretrain(name, out):
    """Train base `name` from nothing and write it to the new folder `out`; returns a summary."""
    require_new(out)  # before minutes of training, not after them
    config, settings, n = RECIPES[name]
    began, words = time.perf_counter(), ByteTokenizer()
    params = random_params(config, np.random.default_rng(0))
    examples, _ = encode_rows(notes(n, seed=0)[0], words, settings)
    held_out, floor = held_out_notes(words, settings)
    model = Model(config, params, kernels.ops)
    params, history = train(params, model, examples, settings, held_out)
    save_pretrained(out, model._replace(base=params), words, "float16")
    return (
        f"{name}: held-out loss {history[-1]['eval_loss']:.4f} nats per token where the text's "
        f"entropy is {floor:.4f}, in {time.perf_counter() - began:.0f} s, written to {out}"
    )


def random_params(config, rng):
    """Fresh float32 weights: N(0, 1/in), the two that write to the residual smaller by √(2L)."""
    leaves = {}
    for path, shape in shapes(config).items():
        if len(shape) == 1:
            leaves[path] = np.ones(shape, "f4")
            continue
        scale = 0.02 if "embed" in path else shape[1] ** -0.5
        if path.endswith(("o_proj.weight", "down_proj.weight")):
            scale /= math.sqrt(2 * config.num_hidden_layers)
        leaves[path] = (scale * rng.standard_normal(shape)).astype("f4")
    return unflatten(leaves)


def main(argv=None):
    """Rebuild an embedded base; return the exit status: 0, or 2 for an error."""
    parser = Parser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("model", choices=RECIPES)
    parser.add_argument("--out", required=True, help="a new folder")
    try:
        args = parser.parse_args(argv)
        print(pretrain(args.model, args.out), file=sys.stderr)
    except (InputError, OSError) as error:
        return report_error(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
