"""Trees: paths in both directions, maps that keep the structure, counts of parameters."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import quantized, random_model
from outcomes import refused

from minilora import tree
from minilora.evaluation import memory

names = st.text("abcxyz_01", min_size=1, max_size=3)
trees = st.recursive(
    st.integers(), lambda inner: st.dictionaries(names, inner, min_size=1, max_size=3), max_leaves=9
).filter(lambda t: isinstance(t, dict))


@given(trees)
def test_flatten_and_unflatten_are_inverse(t):
    flat = tree.flatten(t)
    assert tree.unflatten(flat) == t
    assert all(tree.get(t, path) == leaf for path, leaf in flat.items())
    assert list(flat) == [path for path, _ in tree.named_leaves(t)]


@given(trees)
def test_map_keeps_the_shape_and_the_tree(t):
    before = tree.flatten(t)
    doubled = tree.tree_map(lambda x: 2 * x, t)
    assert tree.flatten(doubled) == {path: 2 * leaf for path, leaf in before.items()}
    assert tree.flatten(tree.tree_map(lambda x, y: y - x, t, doubled)) == before
    assert tree.flatten(t) == before


@pytest.mark.parametrize("scheme", ["int8", "fp4", "nf4", "nf4-dq"])
def test_count_is_of_logical_parameters_however_they_are_stored(scheme):
    # Counts of 4-bit models are reported halved when packed bytes are counted (qlora#260).
    model = random_model()
    base, few_bits = model.base, quantized(model, scheme).base
    expected = sum(w.size for _, w in tree.named_leaves(base))
    assert tree.num_parameters(base) == tree.num_parameters(few_bits) == expected
    assert memory.nbytes(base) == 4 * expected
    assert memory.nbytes(few_bits) < memory.nbytes(base) * 2 / 3


LEAVES = st.dictionaries(st.sampled_from(("a", "b.c", "b.d.e", "b.d.f")), st.integers(), max_size=4)


@given(LEAVES, LEAVES)
def test_overlay_adds_or_replaces_leaves_and_copies_no_more_than_needed(below, above):
    base, before = tree.unflatten(below), tree.unflatten(below)
    laid = tree.overlay(base, tree.unflatten(above))
    assert tree.flatten(laid) == below | above
    assert base == before
    for name, node in base.items():
        if isinstance(node, dict) and not any(path.startswith(name) for path in above):
            assert laid[name] is node


@pytest.mark.parametrize("below, above", [({"a": {"b": 1}}, {"a": 2}), ({"a": 2}, {"a": {"b": 1}})])
def test_a_leaf_cannot_lie_on_a_node(below, above):
    with refused(r"^x\.a is a node in one tree and a leaf in the other$"):
        tree.overlay({"x": below}, {"x": above})
