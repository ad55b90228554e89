"""Combined adapters: ours against PEFT's add_weighted_adapter."""

import pytest
from comparisons import relative
from peft_models import ALL, llama_of, peft, quietly, their_logits, torch

import minilora
from minilora import lora
from minilora.formats.checkpoint import load_adapter
from minilora.formats.pretrained import load
from minilora.layers import lora_delta
from minilora.methods import compose
from minilora.tree import get

PEFT = "PEFT's add_weighted_adapter"
RANKS = {"cat": (2, 5), "svd": (2, 5), "linear": (4, 4)}
SUMS = {"cat": 7, "svd": 5, "linear": 4}  # the ranks of the combined adapters
WEIGHTS = ([0.5, 0.5], [0.7, -1.3])


def two_adapters(llama, ranks, use_rslora):
    """A PEFT model with adapters a and b, every factor random; b is not where a is everywhere."""
    torch.manual_seed(2)
    a, b = (
        peft.LoraConfig(
            task_type="CAUSAL_LM", target_modules=names, r=r, lora_alpha=3, use_rslora=rslora
        )
        for names, r, rslora in zip(
            (ALL, ["q_proj", "k_proj", "down_proj"]), ranks, (use_rslora, not use_rslora)
        )
    )
    with quietly():
        theirs = peft.get_peft_model(llama, a, adapter_name="a")
        theirs.add_adapter("b", b)
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if "lora_" in name:
                p.copy_(0.2 * torch.randn_like(p))
    return theirs.eval()


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
@pytest.mark.parametrize("how", RANKS)
@pytest.mark.parametrize("use_rslora", [False, True])
def test_what_peft_combines(tiny_llama, tmp_path, tokens, compared, use_rslora, how, weights):
    """PEFT gives the sum the config of the first adapter: with rsLoRA, it is √r times too large."""
    folder = tiny_llama()
    theirs = two_adapters(llama_of(folder), RANKS[how], use_rslora)
    with quietly():
        theirs.save_pretrained(tmp_path)
        theirs.add_weighted_adapter(["a", "b"], weights, "both", how, svd_rank=5)
        theirs.set_adapter("both")
    model, _ = load(folder)
    trees = [load_adapter(tmp_path / name, model).adapters for name in "ab"]
    adapters, _ = compose.combine(trees, weights, how, 5 if how == "svd" else None)

    paths, modules = lora.adapted_paths(adapters), dict(theirs.base_model.model.named_modules())
    assert len(paths) == 7 * model.config.num_hidden_layers
    for path in paths:
        ours = lora_delta(get(adapters, path))
        with torch.no_grad():
            delta = modules[path].get_delta_weight("both").numpy()
            if use_rslora:
                delta /= SUMS[how] ** 0.5
        # A float32 sum of at most 7 products; and PEFT's SVD of a whole matrix in float32, which
        # errs by its size, 96, in units of roundoff: 6e-6 of the largest singular value.
        compared(f"combined by {how}: each update", PEFT, relative(ours, delta), 6e-6)
    if not use_rslora:
        logits = minilora.forward(adapters, model, tokens)
        compared(
            "combined adapters: logits", PEFT, relative(logits, their_logits(theirs, tokens)), 1e-5
        )
