"""What the peer tests share: a random Llama that both sides read, the real base if it is here."""

import os
import random
import sys
from itertools import product
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # arrays.py
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when transformers is imported

import numpy as np
import pytest
from comparisons import Comparison, bits, forward, loss_of, relative, table, unequal

import minilora
from minilora.config import InputError
from minilora.formats import fetch
from minilora.formats.checkpoint import load_adapter
from minilora.formats.pretrained import load

SHAPE = {  # rows of whole blocks of 64, which bitsandbytes needs on a CPU
    "vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "eos_token_id": 255, "bos_token_id": None,
}  # fmt: skip
ROWS = pytest.StashKey[dict]()


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: half a minute or more, on the real base")
    config.stash[ROWS] = {}


def pytest_collection_modifyitems(items):
    """Run the test of the whole table last, when the other tests have filled it."""
    items.sort(key=lambda item: item.path.name == "test_proofs_page.py")


def pytest_terminal_summary(terminalreporter, config):
    """The table, as Markdown: what these tests have just seen, and nothing else."""
    lines, rows = [], config.stash[ROWS]
    if rows:
        lines = [*table(rows), "Noise floor: the same quantity, float32 against float64 here."]
    skipped = terminalreporter.stats.get("skipped", ())
    lines += sorted({f"Not compared. {report.longrepr[2]}" for report in skipped})
    if lines:
        terminalreporter.section("what is compared with what")
    for line in lines:
        terminalreporter.write_line(line)


@pytest.fixture
def rng(request):
    """As for the other tests, but without --long the same draws in every run.

    Each draw compares two libraries, and a new one can be a case that only the other one refuses.
    """
    seed = request.config.getoption("--seed") if request.config.option.long else 0
    return random.Random(f"{seed} {request.node.nodeid}")


@pytest.fixture(scope="session")
def recorded(request):
    """{(what, against): Comparison} of what has been recorded so far."""
    return request.config.stash[ROWS]


@pytest.fixture(scope="session")
def compared(recorded):
    """compared(what, against, differences, bound, floor=None): record them, and hold them to it.

    `differences` is a number for each case, `floor` the same between float32 and float64 here.
    """

    def compared(what, against, differences, bound, floor=None, case=""):
        row = recorded.setdefault((what, against), Comparison(bound))
        row.add(np.ravel(differences), bound, floor)
        assert np.max(differences) <= bound, f"{what} against {against}: {case}"

    return compared


@pytest.fixture(scope="session")
def equal(compared):
    """equal(what, against, (ours, theirs), …, case=""): one case, its pairs equal bit for bit."""

    def equal(what, against, *pairs, case=""):
        differ = sum(unequal(bits(ours), bits(theirs)) for ours, theirs in pairs)
        compared(what, against, differ, bound=0, case=case)

    return equal


@pytest.fixture(scope="session")
def same_logits(compared):
    """same_logits(what, against, theirs, adapters, model, tokens, loss=False, bound=1e-5).

    Our logits and theirs, relative to the largest logit: the noise is some 1e-6; a scaling, an
    angle or a matrix mixed up is all of it. With `loss`, the mean losses too, in nats.
    """

    def same_logits(what, against, theirs, adapters, model, tokens, loss=False, bound=1e-5):
        ours, precise = forward(adapters, model, tokens)
        noise = relative(ours, precise)
        compared(f"{what}: logits", against, relative(ours, theirs), bound, noise)
        if loss:
            mean, *others = (loss_of(logits, tokens) for logits in (ours, theirs, precise))
            difference, noise = (abs(mean - other) for other in others)
            compared(f"{what}: loss", against, difference, 2e-6, noise)

    return same_logits


@pytest.fixture
def near_gradients(compared):
    """near_gradients(what, against, expected, loss, adapters, model, *rest): of each leaf.

    Of loss(adapters, model, *rest); `expected` is their {path: gradient}. Returns the loss, and
    that in float64.
    """
    from peft_models import gradient_errors, gradients_and_floor

    def near_gradients(what, against, expected, *loss_and_arguments, bound=1e-4, **named):
        ours, floor, *losses = gradients_and_floor(*loss_and_arguments, **named)
        compared(what, against, gradient_errors(ours, expected), bound, floor)
        return losses

    return near_gradients


@pytest.fixture
def same_gradients(compared, tmp_path):
    """same_gradients(what, against, theirs, model, batch): of each factor, and the loss.

    The noise of float32 is 1e-6 on small models and 1e-5 on the real one; a wrong term is 1e-2 and
    more. With the vocabulary of the real one, the largest part of the difference is the error of
    transformers' loss: exp(x − log Z) with x − log Z near −20 is off by 20 roundings, and log Z by
    those of a sum of 49,152 terms. So the bound is ten times as large there, and the gradient of
    the same logits' loss in float64 is held to the smaller one.
    """
    from peft_models import (
        float64_loss,
        gradient_errors,
        gradients_and_floor,
        gradients_of,
        peft_folder,
        transformers_loss,
    )

    def same_gradients(what, against, theirs, model, batch):
        adapters, model, _ = load_adapter(peft_folder(tmp_path, theirs), model)
        grads, floor, loss, _ = gradients_and_floor(minilora.loss, adapters, model, batch)
        sides = [(against, transformers_loss, 1)]
        if model.config.vocab_size > 10_000:
            exact = f"{against}, loss in float64", float64_loss, 1
            sides = [(against, transformers_loss, 10), exact]
        for whom, their_loss_of, times in sides:
            theirs.zero_grad()
            their_loss = their_loss_of(theirs, batch)
            errors = gradient_errors(grads, gradients_of(their_loss, theirs))
            compared(f"{what}: gradient of each factor", whom, errors, times * 1e-4, floor)
            assert abs(float(loss) / their_loss.item() - 1) <= times * 2e-6

    return same_gradients


@pytest.fixture
def eager():
    """For tests of small tensors: there threads only cost time, and so does it when bitsandbytes
    has torch compile its loops."""
    import torch

    torch.compiler.set_stance("force_eager")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    torch.compiler.set_stance("default")


@pytest.fixture(scope="session")
def random_model(tmp_path_factory):
    """random_model(family, **fields of its config) -> a folder with a random model, float32.

    Its weights are so large that a mistake in any of them shows in the logits.
    """
    import torch
    import transformers

    made = {}

    def make(family="Llama", **fields):
        name = repr((family, sorted(fields.items())))
        if name not in made:
            torch.manual_seed(0)
            config = getattr(transformers, f"{family}Config")(**SHAPE | fields)
            model = transformers.AutoModelForCausalLM.from_config(config)
            for path, p in model.named_parameters():
                torch.nn.init.normal_(p, mean=1.0 if "norm" in path else 0.0, std=0.15)
            made[name] = tmp_path_factory.mktemp("model")
            model.save_pretrained(made[name])
        return made[name]

    return make


@pytest.fixture(scope="session")
def tiny_llama(random_model):
    """tiny_llama(**fields of LlamaConfig) -> a folder with a random Llama with a tied head."""
    return lambda **fields: random_model(**{"tie_word_embeddings": True} | fields)


@pytest.fixture(scope="session")
def smollm2():
    """(Model, tokenizer, the path of its GGUF file); skips if it was not fetched."""
    try:
        path = fetch.cached("smollm2")
    except InputError as error:
        pytest.skip(str(error))
    return *load("smollm2"), path


@pytest.fixture(scope="session")
def their_smollm2(smollm2):
    """SmolLM2 in transformers, float32, of the same file. PEFT changes a model: hand it a copy."""
    import torch
    import transformers

    path = smollm2[-1]
    read = transformers.AutoModelForCausalLM.from_pretrained
    return read(path.parent, gguf_file=path.name, dtype=torch.float32).eval()


DAYS, PLACES = ("Monday", "Wednesday", "Saturday"), ("Harlow", "Lund", "Siena")
GOODS = "apples and cheese", "books", "horses", "wool, salt and iron"
PROSE = " ".join(
    f"In the year {1600 + 7 * i} the town of {place} had {13 * i + 40} houses, a mill on the river "
    f"and a market where {goods} were sold every {day}; people came from far away to see it."
    for i, (day, goods, place) in enumerate(product(DAYS, GOODS, PLACES))
)


@pytest.fixture(scope="session")
def prose(smollm2):
    """1,024 tokens of plain English. (On random tokens float32 itself is no better than 1e-4: at
    some positions attention hangs on the last bit, in transformers as here.)"""
    ids = smollm2[1].encode(PROSE)[:1024]
    assert len(ids) == 1024
    return np.array([ids])


@pytest.fixture
def tokens():
    """(3, 21) token ids of a vocabulary of 256."""
    return np.random.default_rng(0).integers(256, size=(3, 21))
