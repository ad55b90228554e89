"""test-frozen: test that training changes the adapters and nothing else.

`minilora.load("micro")` gives (config, base, tokenizer); `minilora.get_peft_model(base,
LoraConfig(…), 0)` gives (adapters, base). Examples are `data.encode_rows(data.load_rows(
"questions", "valid")[:8], tokenizer, settings)[0]`, with settings = TrainConfig(…).
`flatten(tree)` is {dotted path: leaf}. In `adapters` each projection also has two floats, which are
not trained: `lora_scaling` and `lora_dropout`. `arrays(adapters)` is the tree without them.

`train` returns new trees. The arrays of `base` and of the `adapters` that it was given must be the
same as before, and every array of the returned adapters must be another one.
"""

import numpy as np

import minilora
from minilora import LoraConfig, TrainConfig, data, layers
from minilora.tree import arrays, flatten, tree_map


def check(train):
    """Raise an error if `train(adapters, base, examples, config, settings, ops)` is wrong.

    `train` is `minilora.training.train` or a copy of it with a mistake; it returns (adapters,
    history). Pass `minilora.layers` as `ops`. Use the model `micro`, a few rows of "questions" and
    few steps. With a warm-up, the learning rate of the first step is zero; use `warmup_ratio=0`.
    """
    config, base, words = minilora.load("micro")
    adapters, base = minilora.get_peft_model(base, LoraConfig(r=2), 0)
    settings = TrainConfig(iters=3, batch_size=2, learning_rate=1e-2, warmup_ratio=0)
    examples, _ = data.encode_rows(data.load_rows("questions", "valid")[:8], words, settings)
    before = tree_map(np.array, adapters), tree_map(np.array, base)
    new, _ = train(adapters, base, examples, config, settings, layers)
    for tree, old in zip((adapters, base), before):
        old = flatten(old)
        assert all(np.array_equal(w, old[path]) for path, w in flatten(tree).items())
    assert flatten(new).keys() == flatten(adapters).keys()
    old = flatten(arrays(adapters))
    assert all(np.any(w != old[path]) for path, w in flatten(arrays(new)).items())
