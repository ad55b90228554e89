"""Runs and sweeps in several processes of MPI, and sweeps on a cluster of dask."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "cli"))  # small_run.py
from small_run import contents, write_base, write_rows

from minilora.formats.checkpoint import CHECKPOINT, read_metadata
from minilora.lessons.helpers.compare import Job
from minilora.lessons.helpers.compare import run as run_job
from minilora.lessons.helpers.sweep import mapped

pytest.importorskip("mpi4py")
MPIEXEC = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
ENVIRONMENT = os.environ | {  # Open MPI refuses root, and more processes than cores
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "NUMBA_NUM_THREADS": "1",
}
FEW_STEPS = "--iters 6 --save-every 2 --steps-per-eval 3"
MANY_STEPS = "--iters 200 --save-every 20 --steps-per-eval 100"


def started(processes, *words):
    """Start Python with these arguments, in so many processes; 0: without mpiexec."""
    mpiexec = [MPIEXEC, "-n", str(processes)] if processes else []
    line = [*mpiexec, sys.executable, "-m", *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(line, env=ENVIRONMENT, text=True, **pipes)


def train(folder, processes, *words):
    """Run `minilora train` to its end in `folder`; return what it printed, warnings included."""
    process = started(processes, "minilora", "train", "--adapter-path", folder / "run", *words)
    printed, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return printed + said


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """Flags of a run on a base of two layers and twenty rows."""
    folder = tmp_path_factory.mktemp("place")
    data = write_rows(folder / "rows.jsonl")
    more = "--keep-best", "--lora-dropout", 0.2
    return "--model", write_base(folder / "base"), "--data", data, *more


def test_one_two_and_four_processes_write_the_same_bytes(flags, tmp_path):
    flags = *flags, *FEW_STEPS.split(), "--max-seq-length", 4
    warning = "rows are cut to `max_seq_length` 4"
    assert train(tmp_path, 0, *flags, "--shards", 4).count(warning) == 2  # of training and held out
    expected = contents(tmp_path / "run")
    for processes in (1, 2, 4):
        shutil.rmtree(tmp_path / "run")
        printed = train(tmp_path, processes, *flags)
        assert printed.count("written to") == 1 and printed.count(warning) == 2
        assert contents(tmp_path / "run") == expected


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="no list of processes")
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_all_and_another_number_of_them_resumes(flags, tmp_path, victim):
    flags = *flags, *MANY_STEPS.split()
    train(tmp_path, 0, *flags, "--shards", 4)
    expected = contents(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    process = started(4, "minilora", "train", "--adapter-path", tmp_path / "run", *flags)
    while not (tmp_path / "run/train_config.toml").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    os.kill(pid_of(victim, tmp_path), signal.SIGKILL)
    printed, said = process.communicate(timeout=60)
    assert process.returncode != 0 and "written to" not in printed
    line = f"interrupted: continue with `minilora train --resume --adapter-path {tmp_path / 'run'}`"
    assert said.count(line) == (victim != 0) and "Traceback" not in said
    assert 0 < read_metadata(tmp_path / "run" / CHECKPOINT)[0]["step"] < 200
    train(tmp_path, 2 * victim, "--resume")  # without mpiexec, or two processes
    assert contents(tmp_path / "run") == expected


def pid_of(rank, folder):
    """Return the number of the process of this rank that trains in `folder`."""
    own = f"COMM_WORLD_RANK={rank}\0".encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        line = path.with_name("cmdline").read_bytes()
        if str(folder).encode() in line and own in path.read_bytes():
            return int(path.parent.name)
    raise AssertionError(f"no process {rank}")


def test_an_error_of_all_processes_is_one_line(flags, tmp_path):
    words = "minilora", "train", *flags, "--adapter-path", tmp_path / "run", "--lora-r", 0
    _, said = started(4, *words).communicate(timeout=60)
    assert said.count("error: ") == said.count("--lora-r") == 1 and "Traceback" not in said


# -------------------------------------------------------------------------------- the sweeps

JOBS = [Job("norm", iters=2, seed=seed) for seed in range(3)]


def assert_as_here(rows):
    """The rows are those of this process; another number of threads may add in another order."""
    for row, job in zip(rows, JOBS, strict=True):
        assert row == pytest.approx(run_job(job), abs=2e-5)


def test_a_sweep_on_a_cluster_of_dask():
    distributed = pytest.importorskip("distributed")
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, memory_limit=0
    )
    with cluster, distributed.Client(cluster) as client:
        assert_as_here(mapped(run_job, JOBS, client.get_executor()))
        assert len({os.getpid(), *client.run(os.getpid).values()}) == 3


SCRIPT = """
import json
from mpi4py.futures import MPIPoolExecutor
from minilora.lessons.helpers.compare import Job, run
from minilora.lessons.helpers.sweep import mapped

if __name__ == "__main__":
    with MPIPoolExecutor() as executor:
        rows = mapped(run, [Job("norm", iters=2, seed=seed) for seed in range(3)], executor)
    print(json.dumps(rows))
"""


def test_a_sweep_on_the_executor_of_mpi4py(tmp_path):
    """One process gives the jobs to the two others."""
    script = tmp_path / "sweep.py"
    script.write_text(SCRIPT)
    process = started(3, "mpi4py.futures", script)
    printed, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert_as_here(json.loads(printed))
