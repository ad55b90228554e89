"""debug-load: an adapter that loads, and is only half of itself.

`load` reads the tensors of an adapter that PEFT wrote. It runs without an error. The answers are
better than without the adapter, but worse than they were in training. The file is right: another
program reads it and answers as in training. Find the fault and repair it, in one line.
"""

import numpy as np

from minilora.course.outcome import close

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CASES = {"width": range(2, 5), "r": range(2, 4), "left_out": [0, 2], "further": [0, 1]}
HIDDEN = {"width": range(5, 8), "r": range(4, 6)}


def arguments(rng, width, r, left_out, further):
    start, tensors = {}, {}
    for module in MODULES:
        for factor, shape in {"lora_A": (r, width), "lora_B": (width + 1, r)}.items():
            start[f"{module}.{factor}"] = rng.uniform(-1, 1, shape)
            tensors[name_of(f"{module}.{factor}")] = rng.uniform(-1, 1, shape)
    for i in range(left_out):
        del tensors[name_of(f"{MODULES[i]}.lora_A")]
    if further:
        tensors["base_model.model.lm_head.weight"] = rng.uniform(-1, 1, (2, width))
    order = rng.permutation(len(tensors))
    names = list(tensors)
    return start, {names[i]: tensors[names[i]] for i in order}


def name_of(path):
    return f"base_model.model.{path}.weight"


def property_each_tensor_is_in_its_place(function, start, tensors):
    """a path has the array of the file, if the file has one, and else that of the start"""
    loaded = function(start, tensors)
    for path, w in start.items():
        close(loaded[path], tensors.get(name_of(path), w))


def property_all_paths_and_no_others(function, start, tensors):
    """the paths are those of the start, and none of a complete file keeps its old array"""
    complete = {name_of(path): w + 1 for path, w in start.items()}
    loaded = function(start, complete | tensors)
    assert loaded.keys() == start.keys(), sorted(loaded.keys() ^ start.keys())
    for path, w in start.items():
        assert (np.asarray(loaded[path]) != w).any(), f"{path} is as it was at the start"


def load(start, tensors):
    """Return `start` {path: array} with the arrays of a file {name: array} in their places.

    The name of a path is base_model.model.PATH.weight. The file has its tensors in any order. It
    may have further ones, which are left out. A path without a tensor keeps its array.
    """
    loaded = dict(start)
    for name, w in tensors.items():
        path = name.removeprefix("base_model.model.").removesuffix(".weight")
        if path in loaded:
            loaded[path] = w
    return loaded
