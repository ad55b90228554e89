"""Ask what an experienced reader would question in a run's settings, before the run.

A rule is an `if` and a sentence. The sentence says what is set, why that is unusual, and which
lesson or study shows it. No rule forbids anything: impossible settings are errors (`config`).
"""

import math
from typing import NamedTuple

from minilora.config import LoraConfig
from minilora.formats.hf_folder import projection_shapes, shapes
from minilora.lora import target_paths
from minilora.optim import get_lr
from minilora.tree import unflatten

HALF_UNIT = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}  # of 1.0


class Rows(NamedTuple):
    """The facts about the data: numbers of rows, and whether they have prompts."""

    train: int
    held_out: int
    cut: int = 0  # rows longer than max_seq_length
    prompts: bool = True


def questions(lora_config, train_config, scheme, model_config, rows, also_train=(), block_size=64):
    """Return the sentences of all rules that fire.

    lora_config: a LoraConfig, or the MethodConfig of another method, which has fewer rules. scheme:
    one of quant.schemes.SCHEMES. rows: Rows. also_train: any of `norm`, `bias`, `head`.
    """
    found = [*_base(scheme, model_config, block_size), *_run(train_config, rows)]
    if isinstance(lora_config, LoraConfig):
        rate = _rate(lora_config, train_config, model_config, rows, also_train)
        found = [*_shape(lora_config, model_config), *rate, *found]
    return found


def _shape(lora, model_config):
    adapted = {
        path: lora.rank_and_scaling(path)
        for path in target_paths(unflatten(shapes(model_config)), lora)
    }
    sizes = projection_shapes(model_config)
    for path, (r, _) in adapted.items():
        name = path.rpartition(".")[2]
        n, m = sizes[name]
        if r * (n + m) >= n * m:
            yield f"r {r} trains {r * (n + m):,} numbers on {name}'s {n * m:,}: why? (lesson 1)"
            break
    for r, scaling in adapted.values():
        if not 1 <= scaling <= 2:
            yield (
                f"lora_alpha at r {r} scales the update by {scaling:.3g}, usual is 1 to 2: that "
                "acts much like a factor of the rate; was that chosen with it? (lesson 8)"
            )
            break
    if all(path.endswith(("q_proj", "v_proj")) for path in adapted):
        yield "only q_proj and v_proj learn: is the task so near the base's? (study where_to_apply)"


def _rate(lora, settings, model_config, rows, also_train):
    rate, scale = settings.learning_rate, settings.also_train_lr_scale
    if rate <= 5e-5:
        yield (
            f"--learning-rate {rate:g} is full fine-tuning's: A and B move some "
            f"{total_rate(settings):.1g} at most in this run; is 1e-4 or more meant? (lesson 7)"
        )
    if rate >= 1e-2:
        yield (
            f"--learning-rate {rate:g}: micro takes 1e-2, the recipes of tiny and SmolLM2 4e-3 and "
            "1e-3: is it meant? (study learning_rates_measured)"
        )
    # A ~ U(−1/√in, 1/√in): what is under half the spacing of its largest numbers rounds away
    octave = 2.0 ** math.floor(math.log2(model_config.hidden_size**-0.5))
    least = octave * HALF_UNIT[settings.adapter_dtype]
    if rate < least:
        yield (
            f"--adapter-dtype {settings.adapter_dtype} rounds away steps below {least:.1g} where A "
            f"is large, the rate is {rate:g}: why not float32? (study the_precision_of_adapters)"
        )
    if {"norm", "bias"} & set(also_train) and scale > 1:
        yield (
            f"norms or biases learn at {scale:g} times the rate: at ten times, micro forgot more; "
            "is that meant? (study norms_and_biases)"
        )
    seen = settings.iters * settings.batch_size * settings.grad_accumulation_steps
    if lora.lora_dropout and seen <= rows.train:
        which = f"lora_dropout, and none of {rows.train} rows is seen twice"
        yield f"{which}: what for? (study dropout_and_wrong_choices)"


def _base(scheme, model_config, block_size):
    if scheme == "fp4":
        yield "fp4 takes the bits of nf4 and has a third more error: is nf4 meant? (lesson 2)"
    if scheme == "nf4":
        # 32/B bits a weight become 8/B + 32/(256·B)   (QLoRA, Sec. 3)
        bits = (32 - 8 - 32 / 256) / block_size
        per_layer = sum(map(math.prod, projection_shapes(model_config).values()))
        weights = model_config.num_hidden_layers * per_layer
        saved = f"{bits:.3f} bits a weight, {bits * weights / 8e6:.2g} MB here"
        yield f"nf4-dq saves {saved}, and adds hardly any error: is it meant? (lesson 2)"


def _run(settings, rows):
    warmup, decay = settings.warmup_ratio, settings.weight_decay
    if rows.prompts and not settings.mask_prompt:
        yield "the loss counts the rows' prompts: shall the model say them? (study the_checklist)"
    if rows.cut:
        yield f"{rows.cut} of {rows.train} rows are cut, ends included: why? (study the_checklist)"
    if not rows.held_out:
        yield "no row is held out: how will overfitting show? (study underfitting_and_overfitting)"
    if warmup > 0.1:
        yield f"--warmup-ratio {warmup:g}: warm-up over a tenth of the run, why? (study warm_up)"
    lost = 1 - math.exp(-decay * total_rate(settings))  # of what the first step learned: Π (1 − ηλ)
    if lost > 0.1:
        taken = f"--weight-decay {decay:g} takes back {100 * lost:.0f} % of early steps"
        yield f"{taken}: is that meant? (study schedules_and_decay)"


def total_rate(settings):
    """Return the sum of the rates of all steps.

    Adam moves a number about that far if its gradient keeps its sign. Of more than 10,000 steps,
    10,000 are summed, at equal distances, and the sum is scaled up.
    """
    n = min(settings.iters, 10_000)
    steps = (settings.iters * i // n for i in range(n))
    return settings.iters / n * sum(get_lr(step, settings) for step in steps)
