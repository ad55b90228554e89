"""A process that is interrupted many times while it trains on two threads.

    python interrupted.py SEED TIMES MOMENTS

MOMENTS: `threads`, at an instruction of the code that distributes the work, or `clock`, after some
time. After each interrupt the process trains again, which must give the same bits as its first
training, which was not interrupted.
"""

import hashlib
import random
import signal
import sys
import time
from concurrent.futures import _base, thread

import threadpoolctl

from minilora import get_peft_model, train
from minilora.config import LoraConfig, TrainConfig
from minilora.data.rows import encode_rows, load_rows
from minilora.evaluation.metrics import evaluate
from minilora.formats.pretrained import load
from minilora.kernels import threads
from minilora.tree import arrays, named_leaves

WATCHED = {module.__file__ for module in (threads, threadpoolctl, thread, _base)}
SETTINGS = TrainConfig(iters=1, mask_prompt=True, learning_rate=1e-2)


def job():
    """Train for a step, evaluate; a digest of every bit, and BLAS's threads afterwards."""
    config, base, words = load("micro", "nf4-dq")
    adapters, frozen = get_peft_model(base, LoraConfig(), 0)
    examples, _ = encode_rows(load_rows("questions", "train")[:4], words, SETTINGS)
    adapters, history = train(adapters, frozen, examples, config, SETTINGS)
    digest = hashlib.sha256(repr([row["loss"] for row in history]).encode())
    digest.update(repr(evaluate(adapters, frozen, examples, config)).encode())
    for _, leaf in named_leaves(arrays(adapters)):
        digest.update(leaf.tobytes())
    counts = [info["num_threads"] for info in threadpoolctl.threadpool_info()]
    return digest.hexdigest(), counts


def instructions(call, watched, stop=None):
    """Call; count the instructions in the watched files, and interrupt at number `stop`."""
    count = 0

    def trace(frame, event, _):
        nonlocal count
        if frame.f_code.co_filename not in watched:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            count += 1
            if count == stop:
                signal.raise_signal(signal.SIGINT)
        return trace

    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(None)
    return count


def timed(seconds):
    """Do the job, interrupted after so many seconds."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        job()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def main(seed, times, moments):
    threads.SERIAL_BELOW = 0  # the shares of rows, too, go to two threads
    expected = job()  # compiles
    rng, interrupted = random.Random(seed), 0
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell has ignored it
    signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    began = time.perf_counter()
    assert job() == expected
    whole = time.perf_counter() - began
    total = instructions(job, WATCHED) if moments == "threads" else None
    for _ in range(times):
        moment = rng.uniform(0, whole) if total is None else rng.randint(1, total)
        try:
            if total is None:
                timed(moment)
            else:
                instructions(job, WATCHED, moment)
        except KeyboardInterrupt:
            interrupted += 1
        found = job()
        assert found == expected, (moment, found, expected)
    print(interrupted)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
