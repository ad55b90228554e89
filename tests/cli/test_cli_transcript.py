"""All that the commands print in one scenario, with a base in which details matter."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from toy_models import CONFIG, leaves, tiny, toy_model, with_bos

from minilora.formats.pretrained import save_pretrained

TEMPLATE = """\
{% if tools %}Tools: {{ tools | tojson }}<|im_end|>
{% endif %}
{% for message in messages %}
{% if message.role == "system" %}On {{ strftime_now("%d %B") }}: {% endif %}
[{{ message.role }}] {{ message.content or "" }}
{%- for call in message.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}<|im_end|>
{% endfor %}
{% if add_generation_prompt %}[assistant] {% endif %}"""


def write_base(folder):
    """Write a random Llama whose likely tokens can be read: letters, a space, the bytes of ä.

    Its tokenizer begins a text with <|im_start|>, which the chat template does not write. A turn
    ends with <|im_end|>, a text with <|endoftext|>.
    """
    tokenizer = with_bos(tiny(eos_token_id=0), "<|im_start|>")
    tokens = [tokenizer.backend.id_to_token(token) for token in range(261)]
    likely = [(token.isascii() and token.isalnum()) or token in "ĠÃ¤" for token in tokens]
    config = replace(CONFIG, vocab_size=261, eos_token_id=(0, 2), tie_word_embeddings=False)
    # small weights: else attention saturates, and the signs of its gradients depend on rounding
    weights = {path: w / 4 for path, w in leaves(config).items() if w.ndim == 2}
    weights["lm_head.weight"] *= 2 * np.array(likely, np.float32)[:, None]
    model = toy_model(config, weights)
    save_pretrained(folder, model, replace(tokenizer, chat_template=TEMPLATE))


def test_transcript_of_a_scenario(transcript):
    write_base(Path("base"))
    transcript()
