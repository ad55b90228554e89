"""What the page "Frequently asked questions" says about PEFT and transformers."""

import tokenizers
from peft_models import peft, torch, transformers


def test_an_adapter_of_an_embedding_starts_with_a_zero_a():
    """After a step, the embedding of tokens that were not in the batch is what it was."""
    torch.manual_seed(0)
    layer = torch.nn.Sequential(torch.nn.Embedding(5, 4))
    model = peft.get_peft_model(layer, peft.LoraConfig(target_modules=["0"], r=2))
    a, b = (p for name, p in model.named_parameters() if "lora_embedding" in name)
    assert not a.any() and b.all()
    every = torch.arange(5)
    before = model(every).detach()
    model(torch.tensor([0, 2])).square().sum().backward()
    torch.optim.AdamW([a, b], lr=0.1).step()
    changed = (model(every) != before).any(dim=1)
    assert changed.tolist() == [True, False, True, False, False]


def test_a_padding_token_that_is_the_end_takes_the_end_out_of_the_loss():
    """The collator for language models ignores every token that has the id of the padding."""
    words = {"<end>": 0, "<pad>": 1, "a": 2}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "a"))
    for pad, ends in (("<end>", 0), ("<pad>", 2)):
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=model, eos_token="<end>", pad_token=pad
        )
        collate = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False)
        labels = collate([{"input_ids": [2, 0]}, {"input_ids": [2, 2, 0]}])["labels"]
        assert (labels == 0).sum() == ends
