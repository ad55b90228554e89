"""A head for classes: labels. tests/peers has its logits and gradients."""

import numpy as np
import pytest
from outcomes import refused

import minilora
from minilora.lessons.helpers import class_head

MODEL, _ = minilora.load("micro")
TRAINED = {"score": {"weight": np.zeros((2, MODEL.config.hidden_size), "f4")}}


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_that_is_no_class_is_refused(label):
    """−1 counted as the last class."""
    with refused(f"class {label}: .* 0 to 1"):
        class_head.class_loss(TRAINED, MODEL, [[1, 2], [3]], np.array([1, label]))


@pytest.mark.parametrize("text, says", [([], "a text is empty"), ([-1], "tokens .* -1")])
def test_a_text_that_is_empty_or_not_of_the_vocabulary_is_refused(text, says):
    """Its logits were those of a padding token, and −1 was the last token."""
    with refused(says):
        class_head.class_logits(TRAINED, MODEL, [[1, 2], text])
