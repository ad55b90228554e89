"""A sweep that outgrows one machine runs on an engine that exists: dask's, here on this machine.

It compares minilora with itself, so it is not in the table of comparisons.
"""

import pytest
from sweeps import compare, runner
from sweeps.compare import Job

from minilora.kernels import threads

distributed = pytest.importorskip("distributed", reason="the peers group is not installed")


def test_jobs_over_a_dask_cluster(monkeypatch):
    jobs = [Job("norm", seed, iters=2) for seed in range(3)]
    for library in ("NUMBA", "OPENBLAS", "MKL", "OMP"):  # the workers, which start here, read it
        monkeypatch.setenv(f"{library}_NUM_THREADS", "1")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        there = runner.mapped(compare.run, jobs, client.get_executor())
        workers = client.scheduler_info()["workers"]
    monkeypatch.setattr(threads, "THREADS", 1)  # as there: shares of a batch round in another way
    here = [compare.run(job) for job in jobs]
    assert len(workers) == 2 and len(there) == 3
    assert there == here
