"""A process that is interrupted many times while it trains on two threads.

    python interrupted.py SEED TIMES

After each interrupt the process trains again, which must give the same bits as its first training,
which was not interrupted.
"""

import random
import signal
import sys
import time

import threadpoolctl

from minilora import get_peft_model, train
from minilora.config import LoraConfig, TrainConfig
from minilora.data.encoding import encode_rows
from minilora.data.rows import load_rows
from minilora.formats.pretrained import load
from minilora.kernels import threads
from minilora.tree import arrays, named_leaves

SETTINGS = TrainConfig(iters=1, batch_size=2, mask_prompt=True, learning_rate=1e-2, warmup_ratio=0)
ROWS = load_rows("questions", "train")[:2]  # one for each thread


def job():
    """Train for a step; the losses, a hash of every bit, and BLAS's threads afterwards."""
    model, words = load("micro", "nf4-dq")
    adapters, model = get_peft_model(model, LoraConfig(), 0)
    examples, _ = encode_rows(ROWS, words, SETTINGS)
    adapters, history = train(adapters, model, examples, SETTINGS)
    losses = [row["loss"] for row in history]
    leaves = b"".join(leaf.tobytes() for _, leaf in named_leaves(arrays(adapters)))
    counts = [info["num_threads"] for info in threadpoolctl.threadpool_info()]
    return losses, hash(leaves), counts


def main(seed, times):
    threads.SERIAL_BELOW = 0  # the shares of rows, too, go to two threads
    expected = job()  # compiles
    rng, interrupted = random.Random(seed), 0
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell has ignored it
    signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    began = time.perf_counter()
    assert job() == expected
    whole = time.perf_counter() - began
    while interrupted < times:
        moment = rng.uniform(0, whole)
        try:
            signal.setitimer(signal.ITIMER_REAL, moment)  # the interrupt can come at once
            job()
            signal.setitimer(signal.ITIMER_REAL, 0)  # the interrupt can also come here
            whole = moment  # it came too late: this machine is faster now
        except KeyboardInterrupt:
            interrupted += 1
        found = job()
        assert found == expected, (moment, found, expected)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
