"""test-frozen: test that training changes the adapters and nothing else.

`minilora.load("micro")` gives (model, tokenizer); `minilora.get_peft_model(model, LoraConfig(…),
0)` gives (adapters, model). The weights of `model` are the tree `model.base`. Examples are
`data.encode_rows(data.load_rows("questions", "valid")[:8], tokenizer, settings)[0]`, with
settings = TrainConfig(…). `flatten(tree)` is {dotted path: leaf}. In `adapters` each projection
also has two floats, which are not trained: `lora_scaling` and `lora_dropout`. `arrays(adapters)` is
the tree without them.

`state, record = train_step(state, model, examples, settings)` trains; the first state is
`minilora.start(adapters, settings)`, and each new one has a new tree, `state.adapters`. The arrays
of `model.base` and of `adapters` must be the same as before, and every array of the last
`state.adapters` must be another one.
"""

import numpy as np

import minilora
from minilora import LoraConfig, TrainConfig, data, layers
from minilora.tree import arrays, flatten, tree_map


def check(train_step):
    """Raise an error if `train_step(state, model, examples, settings)` is wrong.

    `train_step` is `minilora.training.train_step` or a copy of it with a mistake. Use the model
    `micro`, `model._replace(ops=layers)`, a few rows of "questions" and few steps. With a warm-up,
    the learning rate of the first step is zero; use `warmup_ratio=0`.
    """
    model, words = minilora.load("micro")
    model = model._replace(ops=layers)
    adapters, model = minilora.get_peft_model(model, LoraConfig(r=2), 0)
    settings = TrainConfig(iters=3, batch_size=2, learning_rate=1e-2, warmup_ratio=0)
    examples, _ = data.encode_rows(data.load_rows("questions", "valid")[:8], words, settings)
    before = tree_map(np.array, adapters), tree_map(np.array, model.base)
    state = minilora.start(adapters, settings)
    for _ in range(3):  # in the first step, A has no gradient
        state, _ = train_step(state, model, examples, settings)
    new = state.adapters
    for tree, old in zip((adapters, model.base), before):
        old = flatten(old)
        assert all(np.array_equal(w, old[path]) for path, w in flatten(tree).items())
    assert flatten(new).keys() == flatten(adapters).keys()
    old = flatten(arrays(adapters))
    assert all(np.any(w != old[path]) for path, w in flatten(arrays(new)).items())
