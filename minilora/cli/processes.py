"""Run `minilora train` in several processes: `mpiexec -n 4 minilora train …`.

All processes take the same steps, but each computes only its shards of a micro-batch. Then all of
them gather the gradients of all shards, and add them in the order of the shards. So the bits of a
run depend on the number of shards, and not on the number of processes. Process 0 alone prints and
writes files.
"""

import hashlib
import os
import sys
import time
from functools import cache, partial
from itertools import pairwise
from types import SimpleNamespace

import numpy as np

from ..config import InputError
from ..tree import named_leaves, unflatten

SHARDS = 4  # of a micro-batch, for any number of processes, unless --shards gives another number
POLL = 1e-4  # seconds


def of_mpiexec(name, default):
    """Return a number that mpiexec of Open MPI, MPICH or Intel MPI has told this process."""
    for prefix in ("OMPI_COMM_WORLD_", "PMI_"):
        default = os.environ.get(prefix + name, default)
    return int(default)


def size():
    """Return the number of processes that mpiexec has started; 0 without mpiexec."""
    return of_mpiexec("SIZE", 0)


def rank():
    """Return the number of this process, from 0."""
    return of_mpiexec("RANK", 0)


@cache
def communicator():
    """Return MPI's communicator of all processes, or None if this process is the only one.

    Raises InputError if mpi4py is missing, or does not use the MPI of mpiexec.
    """
    if size() < 2:
        return None
    try:
        import mpi4py

        mpi4py.rc.finalize = False  # at its exit, a process that failed would wait for the others
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        what = f"mpi4py cannot be imported ({error})"
        way = "install it with `pip install 'minilora[mpi]'`, or start one process without mpiexec"
    else:
        if MPI.COMM_WORLD.Get_size() == size():
            return MPI.COMM_WORLD
        what = f"mpi4py sees {MPI.COMM_WORLD.Get_size()}"
        way = "use the mpiexec of the MPI that mpi4py loads"
    if rank() > 0:  # process 0 reports it, and mpiexec may end it as soon as another one has ended
        time.sleep(2)
        sys.exit(2)
    raise InputError(f"mpiexec started {size()} processes, but {what}: {way}")


def finish():
    """Wait until all processes have done their work."""
    if communicator():
        from mpi4py import MPI

        MPI.Finalize()


def split(ops, shards, comm=None):
    """Return operations that cut a micro-batch into `shards`, for the processes of `comm`.

    ops: those of the model. comm: None computes all shards in this process.
    """
    parallel_map = partial(gather, comm, ops.parallel_map) if comm else ops.parallel_map
    return SimpleNamespace(**{**vars(ops), "THREADS": shards, "parallel_map": parallel_map})


def gather(comm, parallel_map, f, shards):
    """Return [f(shard), …] of all shards, of which each process computes its part.

    f returns (number of target tokens, mean loss, gradient).
    """
    if not shards:
        return []
    edges = [len(shards) * i // comm.Get_size() for i in range(comm.Get_size() + 1)]
    first, end = edges[comm.Get_rank()], edges[comm.Get_rank() + 1]
    # a process without a shard computes one that is not sent, for the shapes of the gradient
    parts = list(parallel_map(f, shards[first:end] or shards[:1]))
    like = parts[0][2]
    sent = np.concatenate([as_bytes(part) for part in parts])
    n = len(sent) // len(parts)
    received = np.empty((len(shards), n), np.uint8)
    wait(comm.Iallgatherv(sent[: n * (end - first)], [received, n * np.diff(edges)]))
    return [from_bytes(row, like) for row in received]


def as_bytes(part):
    """Return (number of target tokens, mean loss, gradient) as one array of bytes."""
    targets, loss, grads = part
    leaves = [np.array([targets, loss], np.float64), *(g for _, g in named_leaves(grads))]
    return np.concatenate([leaf.ravel().view(np.uint8) for leaf in leaves])


def from_bytes(row, like):
    """Return the part whose bytes are `row`; the gradient has the shapes and types of `like`."""
    targets, loss = row[:16].view(np.float64)
    paths, leaves = zip(*named_leaves(like))
    ends = 16 + np.cumsum([0, *(leaf.nbytes for leaf in leaves)])
    read = [
        row[slice(*ends)].view(leaf.dtype).reshape(leaf.shape)
        for ends, leaf in zip(pairwise(ends), leaves)
    ]
    return int(targets), float(loss), unflatten(dict(zip(paths, read)))


def check_same(comm, what, data, way):
    """Raise InputError, in every process, unless all processes have the same bytes."""
    own = np.frombuffer(hashlib.sha256(data).digest(), np.uint8)
    digests = np.empty((comm.Get_size(), len(own)), np.uint8)
    wait(comm.Iallgather(own, digests))
    for other, digest in enumerate(digests):
        if (digest != digests[0]).any():
            raise InputError(f"process {other} has {what} than process 0: {way}")


def wait(request):
    """Wait until MPI has done what was requested."""
    # MPI's own wait would not let Python handle signals, and would keep the core busy
    while not request.Test():
        time.sleep(POLL)
