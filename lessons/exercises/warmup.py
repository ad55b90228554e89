"""warmup: the learning rate, step by step."""

from minilora.config import TrainConfig

CASES = {
    "iters": (1, 60),
    "ratio": [0.0, 0.06, 0.3],
    "schedule": ["constant", "linear", "cosine"],
    "share": (0, 1),
}


def arguments(rng, iters, ratio, schedule, share):
    rate = float(rng.uniform(1, 2))
    config = TrainConfig(iters=iters, warmup_ratio=ratio, lr_schedule=schedule, learning_rate=rate)
    return round(share * (iters - 1)), config


def tolerance(step, config):
    """float64: some five operations on numbers of at most 2."""
    return 2.0**-49


def property_from_nothing_to_the_top(function, step, config):
    """no rate is above the top one, and a warm-up begins at zero"""
    rates = [function(n, config) for n in range(config.iters)]
    assert max(rates) <= config.learning_rate * (1 + 2**-50)
    if config.warmup_ratio and config.iters > 1:
        assert rates[0] == 0, f"the first rate is {rates[0]}"


def property_one_hill(function, step, config):
    """the rate never falls during the warm-up and never rises after it"""
    rates = [function(n, config) for n in range(config.iters)]
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
