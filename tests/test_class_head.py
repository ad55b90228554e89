"""A head for classes: labels. tests/peers has its logits and gradients."""

import numpy as np
import pytest
from outcomes import refused

import minilora
from minilora.lessons.helpers import class_head

MODEL, _ = minilora.load("micro")
TRAINED = {"score": {"weight": np.zeros((2, MODEL.config.hidden_size), "f4")}}


@pytest.mark.parametrize(
    "text, label, says",
    [
        ([3], -1, "class -1: .* 0 to 1"),  # −1 counted as the last class
        ([3], 2, "class 2: .* 0 to 1"),
        ([], 0, "a text is empty"),  # its logits were those of a padding token
        ([-1], 0, "tokens .* -1"),  # −1 was the last token
    ],
)
def test_a_label_that_is_no_class_and_a_text_that_is_none_are_refused(text, label, says):
    with refused(says):
        class_head.class_loss(TRAINED, MODEL, [[1, 2], text], np.array([1, label]))
