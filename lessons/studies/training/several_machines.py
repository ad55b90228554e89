# %% [markdown]
# # Several machines
#
# **The question.** Four machines train one model, each on its own rows, and add up their gradients.
# Over which network do they wait longer than they compute, with LoRA and with full fine-tuning?
#
# **Continues:** [lesson 8](../../08_the_settings.py).
#
# **Time:** a few seconds to run, ten minutes to read. **You need:** lessons 1 and 6.

# %%
import time

import numpy as np

import minilora
from minilora.cli import processes
from minilora.lessons.helpers import common
from minilora.tree import num_parameters

# %% [markdown]
# ## What travels
#
# The gradient of P parameters in float32 has S = 4P bytes. In a *ring all-reduce*, it is cut into n
# chunks for n machines. Each chunk goes round the ring once while each machine adds its own part,
# and once more as the finished sum. So each machine sends 2·(n − 1)/n·S bytes.
#
# A step needs about 6 operations per parameter and token: 2 in the forward pass, 2 for the
# gradients of the activations, 2 for those of the weights. LoRA saves the last 2.
#
# **Predict.** Llama-2-7B on four machines, 8,192 tokens per machine and step, 125 TFLOP/s. LoRA
# (r = 16, all projections) has 40 million parameters. Over 1 Gbit/s, does a machine wait for longer
# than it computes, with LoRA, and with full fine-tuning?

# %%
D, F, L, V = 4096, 11008, 32, 32000  # Llama-2-7B
N = L * (4 * D * D + 3 * D * F + 2 * D) + 2 * V * D + D
TRAINED = {"LoRA": L * 16 * (4 * (D + D) + 3 * (D + F)), "full": N}
OPERATIONS = {"LoRA": 4, "full": 6}
NETWORKS = {"1 Gbit/s": 1e9, "10 Gbit/s": 1e10, "100 Gbit/s": 1e11, "NVLink": 8 * 300e9}  # bits/s


def all_reduce(size, n):
    """Return the bytes that each of n machines sends to add up n gradients of this size."""
    return 2 * (n - 1) / n * size


steps, cells = {}, []
for way, count in TRAINED.items():
    step = OPERATIONS[way] * N * 8192 / 125e12  # seconds
    wait = [8 * all_reduce(4 * count, 4) / speed for speed in NETWORKS.values()]
    steps[way] = np.divide(wait, step)
    cells.append([way, f"{step:.1f}", *(f"{seconds:.3g}" for seconds in wait)])
common.table(["seconds", "computing", *(f"over {name}" for name in NETWORKS)], cells)

# %% [markdown]
# **Answer.** LoRA waits about as long as it computes, full fine-tuning 122 times as long. LoRA
# sends 169 times fewer bytes, but its step is shorter, too. Full fine-tuning needs NVLink for a
# wait below a tenth of the step (600 GB/s in an A100, half of it in each direction).
#
# ## The same bits
#
# minilora does not use the ring. A micro-batch is cut into a fixed number of shards, of which each
# process computes some. All processes gather the gradients of all shards and add them in the order
# of the shards. Below are four shards, of questions on `micro` (0.1 million parameters).
#
# **Predict.** In which of the two ways do one, two and four processes get the same bits? What do
# four processes send in that way, compared with the ring?

# %%
model, _ = minilora.load("micro")
adapters = common.lora_adapters(model, b=1)
batches = [common.batch_of(common.questions()[first:16:4]) for first in range(4)]
gradients = [common.gradients_of(adapters, model, batch) for batch in batches]
shards = [np.concatenate([g.ravel() for g in leaves.values()]) for leaves in gradients]


def ring(own):
    """Return (the sum of the gradients of n processes, bytes that each process sends)."""
    n = len(own)
    sums, sent = [], 0
    for chunk, parts in enumerate(zip(*(np.array_split(gradient, n) for gradient in own))):
        sums.append(sum(parts[chunk:] + parts[:chunk]))  # each begins at another process
        sent += 2 * (n - 1) * parts[0].nbytes / n
    return np.concatenate(sums), sent


def gather(own):
    """Return the same of processes that send all their shards to all others."""
    in_order = [shard for of_process in own for shard in of_process]
    return sum(in_order), (len(own) - 1) * len(own[0]) * own[0][0].nbytes


found, cells = {}, []
for n in (1, 2, 4):
    own = [shards[first : first + 4 // n] for first in range(0, 4, 4 // n)]
    found[n] = ring([sum(of_process) for of_process in own]), gather(own)
    for name, (total, sent), (alone, _) in zip(("ring", "gather"), found[n], found[1]):
        cells.append([name, n, f"{(total != alone).mean():.0%}", f"{sent / shards[0].nbytes:.1f}"])
common.table(["way", "processes", "numbers that differ", "gradients sent"], cells)

# %% [markdown]
# **Answer.** In the second way ("gather"). In the ring, each process first adds its own shards, and
# each chunk begins at another process. So the order of the sum depends on n, and with it the last
# bits. Four processes send 3 gradients instead of 1.5. For adapters, that is cheap.
#
# ## On one machine
#
# With `minilora[mpi]`, `mpiexec -n 2 python several_machines.py` measures how long two processes
# exchange such a LoRA gradient in their memory: 0.03 s on free cores, as over 40 Gbit/s (AMD EPYC).

# %%
comm = processes.communicator()  # None without mpiexec
if comm:
    own, both = (np.ones((n, TRAINED["LoRA"]), np.float32) for n in (1, 2))
    for _ in range(4):
        began = time.perf_counter()
        processes.wait(comm.Iallgather(own, both))
        print(f"{time.perf_counter() - began:.2f} s")
    processes.finish()

# %% [markdown]
# ## What was shown
#
# By arithmetic, LoRA of a 7B model on four machines waits about a step over 1 Gbit/s and a tenth of
# a step over 10 Gbit/s. Full fine-tuning waits 122 steps and 12. Gradients of `micro` that are
# gathered have the same bits for any number of processes. `mpiexec -n 4 minilora train` does this.
#
# **What to try.** `all_reduce(4 * count, 4)`: 64 machines, or 2 bytes per number. Which helps LoRA?
#
# **Where to stop with a debugger.** `gather` in `minilora/cli/processes.py`.
#
# **Further reading.** NVIDIA, *Performance reported by NCCL tests*:
# [github.com/NVIDIA/nccl-tests](https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md).

# %%
# Checks
size = shards[0].nbytes
assert (TRAINED["full"], TRAINED["LoRA"]) == (6_738_415_616, 39_976_960), "Llama-2-7B"
assert len(processes.as_bytes((1, 0.0, gradients[0]))) == 16 + 4 * num_parameters(adapters)
for n, ((of_ring, sent), (in_order, sent_all)) in found.items():
    assert abs(sent - all_reduce(size, n)) < 8 * n, "the last chunk may be a float32 shorter"
    assert sent_all == (n - 1) * 4 / n * size, "each shard goes to all others"
    assert (in_order == found[1][1][0]).all(), "gathered shards must have the same bits"
    assert n == 1 or (of_ring != in_order).any(), "those of the ring must differ"
    bound = 6 * 2.0**-24 * sum(map(abs, shards))  # three sums are rounded, in both ways
    assert (abs(of_ring - in_order) <= bound).all(), "but only by roundings"
slow, fast, *_ = steps["LoRA"]
assert 1 < slow < 1.2 and fast < 0.12, "LoRA waits a step over 1 Gbit/s, and a tenth over 10"
assert (steps["full"][:3] > (121, 12, 1.2)).all() and steps["full"][3] < 0.1, "full: NVLink"
