"""`mpiexec -n N minilora train`: the bits of one process, one writer, one line for an error.

Without MPI: threads are the processes, and `Comm` is what they share. tests/peers has MPI itself.
"""

import json
import re
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from models import TINY, adapted, fast_model, fingerprint, random_examples, random_model
from outcomes import error_of, run
from small_run import parsed, resume
from threadpoolctl import threadpool_info, threadpool_limits

from minilora import cli, kernels, layers
from minilora.batching import Example
from minilora.cli import processes, run_folder
from minilora.cli.loading import load_for_training
from minilora.cli.run import RunWriter, prepare
from minilora.config import InputError, TrainConfig
from minilora.formats.checkpoint import CHECKPOINT
from minilora.training import gradient_at, start, steps

CONFIG = TrainConfig(iters=2, batch_size=5, grad_accumulation_steps=2, learning_rate=0.02, seed=3)


@dataclass
class Comm:
    """The communicator of one of several threads; `shared` has a barrier and their arrays."""

    rank: int
    size: int
    shared: SimpleNamespace | None

    def Get_rank(self):
        return self.rank

    def Get_size(self):
        return self.size

    def Iallgather(self, sent, received):
        self.shared.arrays[self.rank] = sent
        self.shared.barrier.wait(60)
        received.ravel()[:] = np.concatenate(self.shared.arrays)
        self.shared.barrier.wait(60)
        return SimpleNamespace(Test=lambda: True)

    def Iallgatherv(self, sent, received):
        return self.Iallgather(sent, received[0])


def in_processes(size, function):
    """Return [function(comm), …] of so many threads, which are the processes."""
    shared = SimpleNamespace(barrier=threading.Barrier(size), arrays=[None] * size)
    with ThreadPoolExecutor(size) as pool:
        return [*pool.map(function, [Comm(rank, size, shared) for rank in range(size)])]


@pytest.mark.parametrize(
    "ops, shards, sizes",
    [(layers, 9, [4]), (kernels.ops, 4, [2, 3, 5])],
)
def test_the_bits_depend_on_the_shards_and_not_on_the_processes(ops, shards, sizes, monkeypatch):
    """With more processes than shards or rows, some processes have no shard."""
    adapters, model = adapted(random_model(TINY, ops=ops), lora_dropout=0.3)
    examples = random_examples(TINY, 12, seed=1)

    def trained(shards, comm=None):
        ops = processes.split(model.ops, shards, comm)
        ends = steps(start(adapters, CONFIG), model._replace(ops=ops), examples, CONFIG)
        return [(fingerprint(state._asdict()), record["loss"]) for state, record in ends]

    alone = trained(shards)
    for size in sizes:
        assert in_processes(size, partial(trained, shards)) == [alone] * size
    monkeypatch.setattr("minilora.kernels.threads.THREADS", 4)
    assert trained(shards) == alone
    assert trained(2) != alone  # the sum is rounded in another order


def test_each_process_computes_its_own_shards_alone():
    def computed(comm):
        seen = []

        def of_shard(shard):
            seen.append(shard)
            return 1, 0.5, {"a": np.zeros(2, "f4")}

        processes.gather(comm, map, of_shard, [*range(1, 8)])
        return seen

    assert in_processes(3, computed) == [[1, 2], [3, 4], [5, 6, 7]]


def test_rows_without_a_target_in_several_processes():
    """All shards of the first micro-batch are left out, and all but one of the second."""
    adapters, model = adapted(fast_model())
    tokens, mask = random_examples(TINY, 1, seed=1)[0][:2]
    rows = [[Example([1, 2], [1, 0])]] * 9 + [[Example(tokens, mask)]]

    def gradient(comm=None):
        found = model._replace(ops=processes.split(model.ops, 4, comm))
        loss, grads, _ = gradient_at(adapters, found, rows, 0, CONFIG)
        return loss, fingerprint(grads)

    assert in_processes(2, gradient) == [gradient()] * 2


def test_processes_that_differ_end_with_one_error_in_all_of_them():
    def check(comm, *what):
        try:
            processes.check_same(comm, "other rows", what[comm.rank], "give all the same")
        except InputError as error:
            return str(error)

    # the SHA-256 of these texts, which differ at the end, have one byte in common
    same, other = b"a long text 1", b"a long text 5"
    assert in_processes(2, lambda comm: check(comm, same, same)) == [None] * 2
    line = "process 2 has other rows than process 0: give all the same"
    assert in_processes(3, lambda comm: check(comm, same, same, other)) == [line] * 3


# ------------------------------------------------------------------------------ the command


@pytest.fixture
def started(monkeypatch):
    """Return a function that makes this process one of several; `slept` has its waiting times."""
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    forget = processes.communicator.cache_clear
    forget()

    def start(size, rank=0, prefix="OMPI_COMM_WORLD_"):
        monkeypatch.setenv(f"{prefix}SIZE", str(size))
        monkeypatch.setenv(f"{prefix}RANK", str(rank))

    start.slept = slept
    yield start
    forget()


@pytest.fixture
def with_comm(started, monkeypatch):
    """Return a function that makes this process one of several, which compute the same."""

    def start(size, rank=0):
        started(size, rank)
        comm = Comm(rank, size, None)
        monkeypatch.setattr(processes, "communicator", lambda: comm)
        monkeypatch.setattr(processes, "finish", lambda: None)
        monkeypatch.setattr(processes, "check_same", lambda *_: None)
        monkeypatch.setattr(processes, "gather", lambda comm, compute, f, shards: map(f, shards))

    return start


class BrokenMPI:
    """The package mpi4py without the library of MPI."""

    rc = SimpleNamespace()

    @property
    def MPI(self):
        raise RuntimeError("cannot load MPI library")


ALONE = SimpleNamespace(COMM_WORLD=SimpleNamespace(Get_size=lambda: 1))  # of another MPI


@pytest.mark.parametrize(
    "prefix, mpi4py, message",
    [
        ("OMPI_COMM_WORLD_", None, r"cannot be imported .*pip install 'minilora\[mpi\]'"),
        ("PMI_", BrokenMPI(), r"cannot be imported \(cannot load MPI library\): install it"),
        ("PMI_", SimpleNamespace(MPI=ALONE, rc=SimpleNamespace()), "sees 1: use the mpiexec of"),
    ],
)
def test_several_processes_without_their_mpi_are_one_line_and_train_nothing(
    train, prefix, mpi4py, message, out, started, monkeypatch
):
    monkeypatch.setitem(sys.modules, "mpi4py", mpi4py)
    started(4, 0, prefix)
    error = error_of(train, "--seed one")  # it comes before an error of the arguments
    assert re.search(f"mpiexec started 4 processes, but mpi4py {message}", error)
    assert mpi4py is None or mpi4py.rc.finalize is False
    started(4, 3, prefix)
    with pytest.raises(SystemExit, match=r"^2$"):
        train()
    assert started.slept == [2]  # seconds, in which process 0 reports the error
    assert not out.exists()
    started(1, 0, prefix)
    train()


def test_process_1_writes_and_prints_nothing(train, out, with_comm):
    with_comm(2, 1)
    with run_folder.lock(out):  # process 0 holds it
        for more in ("--val-batches 99", "--dry-run --max-seq-length 5"):
            assert train("--keep-best", more) == ("", "")
    assert not out.exists()


def test_with_shards_blas_has_one_thread(train, with_comm, monkeypatch):
    """With two, it may add the terms of a product in another order."""
    seen = []

    def spying(*args):
        seen.append({info["num_threads"] for info in threadpool_info() if "blas" in info.values()})
        return load_for_training(*args)

    monkeypatch.setattr("minilora.cli.run.load_for_training", spying)
    with threadpool_limits(2, "blas"):
        for flags in ("--shards 2", "--overwrite"):
            train(flags)
        with_comm(2)  # mpiexec: the shards are the default
        train("--overwrite")
    assert seen == [{1}, {2}, {1}]


def test_an_error_of_another_process_names_it(train, with_comm, started, monkeypatch):
    """It waits first: process 0 reports an error of all, and mpiexec then ends the others."""
    done = started.slept
    monkeypatch.setattr(signal, "signal", lambda *change: done.append(change))
    with_comm(2, 1)
    line = error_of(train, "--lora-r 0")
    assert line.startswith("error: process 1: --lora-r must be")
    assert done == [(signal.SIGTERM, signal.SIG_DFL), cli.PATIENCE]


def test_a_process_without_work_is_refused(train, out, with_comm):
    with_comm(3)
    for flags, shards in (("--batch-size 2", 2), ("--batch-size 4 --shards 1", 1)):
        error = error_of(train, flags)
        assert f"a micro-batch has {shards} shards for 3 processes: start fewer" in error
    assert not out.exists()


def test_shards_are_refused_if_the_gradient_is_too_large(
    train, base, data, out, monkeypatch, with_comm
):
    limit = "minilora.cli.loading.MAX_PARALLEL_PARAMETERS"
    monkeypatch.setattr(limit, 896)  # those of rank 8
    train("--dry-run --shards 2")
    monkeypatch.setattr(limit, 895)
    line = error_of(train, "--shards 2")
    assert "--shards has no effect with more than 895 trained parameters" in line
    with_comm(1)
    args = parsed("train --model", base, "--data", data)
    assert prepare(args, out).loaded.model.ops is kernels.ops
    with_comm(2)
    assert "a micro-batch has 1 shards for 2 processes" in error_of(train)


def test_a_run_without_shards_is_not_resumed_by_several_processes(train, out, with_comm):
    train()
    with_comm(2)
    assert "has no --shards" in error_of(resume, out, "--iters 6")


def test_one_of_several_processes_does_not_save_when_it_is_interrupted(
    train, out, with_comm, monkeypatch
):
    """Mpiexec kills it soon after: it has the time for one line."""
    with_comm(2)
    first_step = iter([True])

    def interrupted(*args):
        if next(first_step, None):
            return gradient_at(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr("minilora.training.gradient_at", interrupted)
    assert "start the same command again" in train(status=130).err
    assert not (out / CHECKPOINT).exists()


def test_all_processes_are_compared_before_the_first_step_and_before_each_save(
    train, with_comm, monkeypatch
):
    with_comm(2)
    seen, save = [], RunWriter.save
    monkeypatch.setattr(processes, "check_same", lambda comm, what, bytes, way: seen.append(bytes))
    monkeypatch.setattr(RunWriter, "save", lambda *args: seen.append("save") or save(*args))
    train()
    facts, first, second, *rest = seen
    assert json.loads(facts)["settings"]["shards"] == 4
    assert first[:1] == b"0" and second[:1] == b"2" and first[1:] != second[1:]
    assert rest[0] == rest[2] == "save" and rest[1][:1] == b"4"


def test_only_train_uses_several_processes(started):
    merge = "merge --model micro --out x"
    started(2)
    for words in (merge, "learn list"):
        assert "only `minilora train` uses several" in error_of(run, words)
    started(1)
    assert "there is no adapter to merge" in error_of(run, merge)
