"""Every method: a run, its folder, its checkpoint, and the commands that read them."""

from itertools import product

import numpy as np
import pytest
from models import fingerprint, random_examples
from outcomes import error_of, refused, run
from small_run import at, parsed
from toy_models import FACTS

import minilora
from minilora import TrainConfig, load, save_adapter
from minilora.cli.commands import load_model
from minilora.cli.loading import load_for_training
from minilora.formats.checkpoint import load_state, save_state
from minilora.methods.registry import METHODS
from minilora.quant.schemes import SCHEMES, WITHOUT_BLOCKS

UNMERGEABLE = ("bottleneck", "prompt", "p-tuning", "prefix")


def combinations():
    """All of methods × storage with --all-combinations; else every method, every storage."""
    every = [(m, s) for m, s in product(METHODS, SCHEMES) if m != "full" or s == "none"]
    few = {(m, SCHEMES[i % len(SCHEMES)] if m != "full" else "none") for i, m in enumerate(METHODS)}
    marked = [
        pytest.param(*pair, marks=[] if pair in few else [pytest.mark.combinations])
        for pair in every
    ]
    more = "--init-lora-weights loftq --lora-r 4 --optimizer muon --also-train norm head"
    return [*marked, (f"dora {more}", "nf4")]


def states(loaded, optimizer, state=None):
    """Yield the state after each of two training steps on random tokens."""
    config = TrainConfig(
        iters=2, batch_size=2, learning_rate=0.05, warmup_ratio=0.0, optimizer=optimizer
    )
    examples = random_examples(loaded.model.config, 6)
    state = state or minilora.start(loaded.adapters, config)
    for state, _ in minilora.run(state, loaded.model, examples, config, quiet=True):
        yield state


@pytest.mark.parametrize("method, storage", combinations())
def test_a_methods_run_is_resumed_and_its_folder_is_read_by_every_command(
    method, storage, base, tmp_path
):
    blocks = "" if storage in WITHOUT_BLOCKS else "--block-size 32"
    words = f"train --model {base} --method {method} --quantize {storage} {blocks}"
    args = parsed(words)
    loaded = load_for_training(args)
    first, last = states(loaded, args.optimizer)
    # resumed to the same bytes: the checkpoint has the encoder; the base is initialized again
    save_state(tmp_path / "checkpoint", first, FACTS)
    again = load_for_training(args)
    state, *_ = load_state(tmp_path / "checkpoint", again.adapters, args.optimizer)
    (resumed,) = states(again, args.optimizer, state)
    assert fingerprint(resumed.adapters) == fingerprint(last.adapters)

    folder, merged = tmp_path / "run", tmp_path / "merged"
    save_adapter(folder, last.adapters, loaded.model, loaded.adapter_config)
    tokens = np.array([[1, 2, 3, 4]])
    expected = minilora.forward(last.adapters, loaded.model, tokens)
    assert np.abs(expected - minilora.forward({}, loaded.model, tokens)).max() > 1e-3

    # the file holds the numbers, or for p-tuning the rows that its network gives
    read = load_model(parsed("evaluate"), folder)
    loads = [read]
    if method != "p-tuning":  # the file has no network to train
        loads.append(load_for_training(parsed("train --init-adapter", folder)))
    if method == "full":
        for flags in ("--quantize int8", "--block-size 32"):
            with refused("--quantize and --block-size have no effect"):
                load_model(parsed("evaluate", flags), folder)
    for found in loads:
        assert found.model.source == loaded.model.source
        logits = minilora.forward(found.adapters, found.model, tokens)
        np.testing.assert_allclose(logits, expected, atol=1e-5)
    merge = "merge", *at(folder), "--out", merged
    if method in UNMERGEABLE:
        assert "cannot be merged" in error_of(run, *merge)
        return
    run(*merge)
    logits = minilora.forward({}, load(merged).model, tokens)
    np.testing.assert_allclose(logits, expected, atol=1e-4)
