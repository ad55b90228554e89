# %% [markdown]
# # 12. Evaluation and diagnosis
#
# **The question.** A fine-tuning run has ended and printed a number. Is the number good, is it
# true, and what may be done on the strength of it?
#
# First the data are put on trial, with two models too small to hide anything. Then the curves are
# read. Then we ask what the model's own confidence is worth, in money.
#
# ![Three sets of rows. Training rows give gradients. Validation rows choose settings and when to
# stop. Test rows give one number at the end.](../figures/drawings/data_splits.svg)
#
# Time: about a minute. You need: lesson 0, and what a conditional probability is.

# %%
import math

import numpy as np
from common import QUICK, figure, finetune, held_out_notes, of, read_sweep, short, table
from sweeps.confidence import COSTS, answers, confidence, cost, draw_gaps, draw_reliability, fitted
from sweeps.label_check import check

import minilora
from minilora import TrainConfig, data
from minilora.data import tasks
from minilora.evaluation import plot
from minilora.evaluation.metrics import calibration_error

ITERS = short(200, 20)
PER_ANSWER = 23  # target tokens: 22 letters and the end

# %% [markdown]
# ## What is a good loss?
#
# A loss means nothing beside nothing. The task's generator is known, so two marks can be computed.
# An answer is " Ada, pink kite, barn.": a name, a colour, a thing and a place, each a fair draw. A
# model that knows the form and never reads the question pays
#
#     H = log 24 + log 8 + log 24 + log 8 nats an answer, spread over its 23 tokens.
#
# A model that reads the question can get to 0, for the answer stands in it.
#
# **Predict:** a loss of 0.45 nats a token, down from 4.0. Has the model learned to answer?

# %%
draws = tasks.NAMES, tasks.COLOURS, tasks.THINGS, tasks.PLACES
floor = sum(math.log(len(some)) for some in draws) / PER_ANSWER
config, base, words = minilora.load("micro")
settings = TrainConfig(mask_prompt=True)
valid, _ = data.encode_rows(data.load_rows("questions", "valid"), words, settings)
bare = minilora.evaluate({}, base, valid, config)
print(f"the bare base: {bare['loss']:.2f} nats a token; form without the question: {floor:.4f}")
assert sum(valid[0].mask) == PER_ANSWER
assert 0.45 < floor < 0.46 and bare["loss"] > 3.5

# %% [markdown]
# It has learned nothing about answering. The whole fall from 4.0 is the form, and the form is had
# from the answers alone.
#
# ## Are the labels right?
#
# The usual first check is a model with almost no room: a **linear head** on the frozen base (the
# method `head`), or an adapter of **rank 1**. It is cheap, and it cannot learn by heart. Train it
# on the data, then on the same data with the answers shuffled among the rows. Only the first may
# succeed. If the second succeeds, the answer leaks into the prompt or the score is wrong. If the
# first fails, the labels or the preprocessing are suspect.
#
# The head gets a question made for it: " In the" and then a letter, A to H, for the place. The base
# is about to name the place there, so its state must hold it; the letters it never saw.
#
# **Predict:** four runs, the head and rank 1, right and shuffled labels. Which fail? And which fail
# when the head is asked the full question?

# %%
runs = {}
for trained, task in (("head", "place"), ("head", "questions"), ("rank 1", "questions")):
    for fault in ("none", "shuffled labels"):
        iters = 200 if task == "place" else ITERS
        runs[trained, task, fault] = check((trained, task, fault, 0), iters)
table(
    ("trained", "task", "labels", "train loss", "held-out loss", "exact match"),
    [
        (m, task, fault.replace("none", "right"), f"{row['train_loss']:.3f}", f"{row['loss']:.3f}",
         f"{row['exact_match']:.0%}")
        for (m, task, fault), (row, *_) in runs.items()
    ],
)  # fmt: skip
blind_place = math.log(len(tasks.PLACES)) / 2  # a letter and the end
right, wrong = (runs["head", "place", fault][0] for fault in ("none", "shuffled labels"))
assert right["exact_match"] > 0.9 and right["loss"] < blind_place / 4
assert wrong["exact_match"] < 0.5 and wrong["loss"] > 0.95 * blind_place

# %% [markdown]
# The same over five seeds, from `sweeps/label_check.csv`, with two faults more: answers that are
# cut before their end (a `max_seq_length` of 70 for rows of 75 tokens), and a prompt mask that is
# the wrong way round. The held-out rows are always whole and right.

# %%
sweep = read_sweep("label_check")


def seeds_of(name, **where):
    """The values of a column over the rows that agree with `where`."""
    return np.array(of(sweep, name, **where))


cells = []
for trained, task, fault in dict.fromkeys((r["trained"], r["task"], r["fault"]) for r in sweep):
    some = {"trained": trained, "task": task, "fault": fault}
    losses = [seeds_of(name, **some) for name in ("train_loss", "loss")]
    exact = seeds_of("exact_match", **some)
    cells.append((trained, task, fault, *(f"{x.mean():.3f} ± {x.std(ddof=1):.3f}" for x in losses),
                  f"{exact.min():.0%} to {exact.max():.0%}"))  # fmt: skip
table(("trained", "task", "fault", "train loss", "held-out loss", "exact match"), cells)

place = {"trained": "head", "task": "place"}
assert seeds_of("exact_match", **place, fault="none").min() > 0.9
assert seeds_of("loss", **place, fault="shuffled labels").min() > 0.95 * blind_place
chance = [seeds_of(n, **place, fault="shuffled labels") for n in ("exact_match", "loss")]
lucky = max(zip(*chance))
assert lucky[0] > 0.35 and abs(lucky[1] / blind_place - 1) < 0.025
rank_1 = {"trained": "rank 1", "task": "questions"}
assert seeds_of("exact_match", **rank_1, fault="none").min() > 0.5
assert seeds_of("loss", **rank_1, fault="none").max() < floor / 4
for fault in ("shuffled labels", "answers cut", "mask inverted"):
    assert seeds_of("exact_match", **rank_1, fault=fault).max() < 0.01
# Shuffled labels leave the form, and nothing else: both losses within 5 % of the blind model's.
for name in ("train_loss", "loss"):
    assert np.abs(seeds_of(name, **rank_1, fault="shuffled labels") / floor - 1).max() < 0.05
cut, inverted = ({**rank_1, "fault": fault} for fault in ("answers cut", "mask inverted"))
assert (seeds_of("loss", **cut) > 3 * seeds_of("train_loss", **cut)).all()
assert seeds_of("loss", **inverted).min() > 0.7 * bare["loss"]
assert seeds_of("train_loss", **cut).max() < floor / 2 < seeds_of("train_loss", **inverted).min()
# The head on the full question: worse than blind with the *right* labels.
head = {"trained": "head", "task": "questions"}
assert seeds_of("loss", **head, fault="none").min() > 1.1 * floor
assert seeds_of("exact_match", **head, fault="none").max() < 0.01
# and the live slice is the sweep's
if not QUICK:
    for (trained, task, fault), (row, *_) in runs.items():
        again = seeds_of("loss", trained=trained, task=task, fault=fault, seed=0.0)
        assert abs(row["loss"] - again[0]) < 0.1 * again[0] + 0.02

# %% [markdown]
# Three things are worth keeping.
#
# - **A check that fails on right labels checks nothing.** "With shuffled labels both must fail" is
#   true of the head on the full question, and empty: it fails with the right ones as well, and does
#   worse than blind. (Give it 1,000 steps: it comes down to the blind loss and stays there.) One
#   linear map of one state copies no four words out of a sentence. A head is a check where the
#   answer is linear in the state, as the place's letter is; rank 1 is one for the full question.
# - **Which loss is stuck tells which fault it is.** Shuffled labels: both losses stand at the floor
#   that we computed. Answers cut: training loss low, held-out loss high, which looks like
#   overfitting; but so few parameters cannot learn 4,000 rows by heart, so the rows must differ.
#   Mask inverted: held-out loss near the bare base's, for the answers were never trained.
# - **Look at the loss, not only at the score.** The exact match of three different faults is the
#   same 0 %. And one seed of shuffled places has 36 % right at a loss 2 % under the floor: eight
#   near-equal letters, and a shuffle that happens to break the ties well.
#
# ## Underfitting, overfitting
#
# **Predict:** three runs of 200 steps: the head on 4,000 rows, rank 8 on 32 rows, rank 8 on 4,000
# rows. Draw both losses of each. Where does the held-out loss of the second turn up again?

# %%
EVERY = short(20, 10)
_, underfit, _, _ = check(("head", "questions", "none", 0), ITERS, steps_per_eval=EVERY)
few, many = (
    finetune(rows=tasks.questions("train", n, seed=0), iters=ITERS, steps_per_eval=EVERY)
    for n in (32, 4000)
)


def curves(history):
    """(steps, training loss as a mean of 10 steps), (steps, held-out loss)."""
    train = [(s["step"], s["loss"]) for s in history if "loss" in s]
    held_out = [(s["step"], s["eval_loss"]) for s in history if "eval_loss" in s]
    steps, losses = zip(*train)
    return (steps, plot.smooth(losses, 10)), tuple(zip(*held_out))


titles = ["underfits: a head, 4,000 rows", "overfits: r = 8, 32 rows", "fits: r = 8, 4,000 rows"]
ends = {}
with figure("underfit_overfit", "optimizer step", ["loss (nats a target token)", "", ""], titles,
            width=9.6, height=3.4, columns=3) as panels:  # fmt: skip
    for axes, title, history in zip(panels, titles, (underfit, few.history, many.history)):
        train, held_out = curves(history)
        axes.plot(*train, label="training", **plot.LINES[0])
        axes.plot(*held_out, label="held out", marker="o", markersize=4, **plot.LINES[1])
        axes.axhline(floor, color=plot.GREY, linewidth=0.8)
        axes.text(ITERS, floor + 0.02, "blind to the question", ha="right", fontsize=8)
        axes.set_ylim(0, 1.25)
        axes.legend(frameon=False, loc="upper right")
        ends[title] = (train[1][-1], held_out[1][-1], min(held_out[1]))
table(
    ("", "train loss", "held-out loss", "lowest held-out"),
    [(title, *(f"{x:.4f}" for x in losses)) for title, losses in ends.items()],
)
under, over, fit = ends.values()
assert under[1] < 1.2 * under[0] and under[0] > floor
if not QUICK:
    assert over[1] > 10 * over[0]
    assert fit[1] < 2 * fit[0] and fit[1] < floor / 10
    assert over[1] < 1.1 * over[2]  # it does not turn up

# %% [markdown]
# ![Training and held-out loss: both high, far apart, both low](../figures/underfit_overfit.png)
#
# Underfitting is both losses high and together: more rows change nothing, more to train does.
# Overfitting is the gap between them, here a factor of more than ten. **The textbook's upturn does
# not come.** The held-out loss falls, and then it lies still, since the training loss has nothing
# left to pull with and the learning rate goes to zero. Who waits for the upturn in order to stop,
# or to see that there are too few rows, sees neither. Compare the two losses instead.
#
# ## What is a confidence worth?
#
# An answer's confidence is the product of its tokens' probabilities, p(answer) = Π pₜ, which is the
# chain rule. It is *calibrated* if of the answers given with confidence p a share p is right. Two
# numbers say how far off it is, over N answers with outcome y (1 if right):
#
#     ECE   = Σ_b |B_b|/N · |accuracy(B_b) − confidence(B_b)|     (Guo et al. 2017, Eq. 3)
#     Brier = 1/N · Σ (p − y)²                                    (Brier 1950)
#
# ![A reliability diagram: answers grouped by the model's confidence. Where the share of right
# answers is below the confidence, the model is too sure. The gaps, weighted, are the
# ECE.](../figures/drawings/reliability.svg)
#
# **Predict:** the base on its own notes, whose entropy it nearly reaches: what ECE a token? The
# base on the questions? The run on 32 rows, the run on 4,000? Who is too sure, who not enough?

# %%
notes, _ = held_out_notes(words, TrainConfig(), short(256, 64))
own = minilora.evaluate({}, base, notes, config)
table(
    ("by token", "ECE", "Brier", "loss"),
    [
        (name, f"{s['ece']:.3f}", f"{s['brier']:.3f}", f"{s['loss']:.3f}")
        for name, s in (
            ("base, its own notes", own), ("base, questions", bare),
            ("32 rows, questions", few.scores), ("4,000 rows, questions", many.scores),
        )
    ],
)  # fmt: skip
assert own["ece"] < 0.02 and bare["ece"] > 0.3
test_rows = tasks.questions("test", short(1000, 200), 1)
judged = {n: answers(run.adapters, run.frozen, test_rows) for n, run in ((32, few), (4000, many))}
for n, (logits, hit) in judged.items():
    p = confidence(logits)
    print(f"{n:,} rows, by answer: ECE {calibration_error(p, hit):.3f}, "
          f"confidence {p.mean():.3f}, right {hit.mean():.3f}")  # fmt: skip
if not QUICK:
    p, hit = confidence(judged[4000][0]), judged[4000][1]
    assert many.scores["ece"] < 0.02 and calibration_error(p, hit) > 0.08
    assert hit.mean() > 0.95 and p.mean() < hit.mean() - 0.08

# %% [markdown]
# The last two lines are one model, twice. Its tokens are off by less than a hundredth, and its
# answers by more than a tenth, on the *modest* side: it is always right and says 0.84. Nothing is
# inconsistent. A token that is right with certainty and gets 0.993 is off by 0.007, and 0.993²³ is
# 0.85. **Measure the event that you decide on**: averages over tokens are made up of commas.
#
# An ECE is never 0, either: bins are noisy, and the absolute value adds the noise up. What would a
# model show that is calibrated exactly? Draw outcomes from its own confidences and see.

# %%
assert abs(0.993**PER_ANSWER - 0.85) < 0.005
rng = np.random.default_rng(0)
p, hit = confidence(judged[32][0]), judged[32][1]
noise = [calibration_error(p, rng.random(len(p)) < p) for _ in range(200)]
print(f"ECE of the run on 32 rows: {calibration_error(p, hit):.3f}")
print(f"if it were calibrated exactly: {np.mean(noise):.3f}, in 19 of 20 samples at most "
      f"{np.quantile(noise, 0.95):.3f}")  # fmt: skip
if not QUICK:
    assert min(noise) > 0 and np.mean(noise) > 0.01
    assert calibration_error(p, hit) > np.quantile(noise, 0.95)

# %% [markdown]
# ## The cheap mend
#
# **Temperature scaling** divides all logits by one number τ, fitted on held-out answers (Guo et
# al. 2017, Sec. 4.2, Eq. 9). The likeliest token stays the likeliest, so no answer changes: only
# the confidence does. τ > 1 makes it modest, τ < 1 makes it bold.
#
# **Predict:** fine-tuned models are said to be overconfident. Is τ above 1 for 16 training rows?
# For 4,000? All rows of the sweep trained 200 steps; right answers go from few to all.

# %%
sweep = read_sweep("confidence")
sizes = sorted({int(row["n"]) for row in sweep})


def over_seeds(name, n):
    return np.array(of(sweep, name, n=n))


columns = ["accuracy", "temperature"]
columns += [f"{name}_{way}" for way in ("raw", "mended") for name in ("confidence", "ece")]
table(
    ("rows", *(name.replace("_", " ") for name in columns)),
    [(n, *(f"{over_seeds(name, n).mean():.3f}" for name in columns)) for n in sizes],
)
for n in sizes:
    gap = over_seeds("confidence_raw", n) - over_seeds("accuracy", n)
    temperature = over_seeds("temperature", n)
    if n <= 32:
        assert (gap > 0.03).all() and (temperature > 1.05).all()  # too sure
    if n >= 128:
        assert (gap < -0.08).all() and (temperature < 0.9).all()  # not sure enough
    assert over_seeds("ece_mended", n).mean() < over_seeds("ece_raw", n).mean() / 2
    assert over_seeds("brier_mended", n).mean() < over_seeds("brier_raw", n).mean()
assert over_seeds("token_ece", 4000).max() < 0.02 and over_seeds("ece_raw", 4000).min() > 0.08

# %% [markdown]
# **Overconfidence is not a property of fine-tuning, but of too few rows.** With 16 and 32 rows, the
# training rows are known by heart and every seed is too sure; from 128 rows on every seed is not
# sure enough. Temperature mends both, in opposite directions, at the price of one number. (Where no
# validation answer was wrong, τ runs to the end of its range, 0.25. Six hundred rows without an
# error show only that errors are rarer than about 3/600 = 0.5 %.)
#
# Now on the live runs, bin by bin.

# %%
valid_rows = tasks.questions("valid", short(600, 100), 1)
tau = {n: fitted(*answers(run.adapters, run.frozen, valid_rows))
       for n, run in ((32, few), (4000, many))}  # fmt: skip
logits, hit = judged[32]
with figure("calibration", ["confidence of the answer", "training rows"],
            ["share of answers that are right", "confidence − accuracy (share)"],
            ["32 rows: τ mends the mean, not the bend", "who is too sure depends on the rows"],
            width=9.2, height=3.8, columns=2) as (left, right):  # fmt: skip
    ways = (("as trained", confidence(logits)), (f"τ = {tau[32]:.2f}", confidence(logits, tau[32])))
    draw_reliability(left, ways, hit)
    draw_gaps(right, sweep)

# %% [markdown]
# ![Reliability diagram; confidence minus accuracy over rows](../figures/calibration.png)
#
# (Left: bins with at least ten answers. Right: mean, least and most of five seeds.)
#
# ## A decision
#
# A wrong answer costs 1; to hand the question to a person costs c. Answering costs 1 − p on
# average *if p is calibrated*, so answer where
#
#     1 − p < c        (Chow 1970: reject where the likeliest class is not likely enough)
#
# which promises a mean cost of mean(min(1 − p, c)). Handing over everything costs c, and a rule
# that costs more than that is worse than no model.
#
# **Predict:** can a rule this simple be worse than no model? Which of the two runs throws good
# answers away, and at which c?

# %%
cells, paid = [], {}
for n, (logits, hit) in judged.items():
    for way, temperature in (("as trained", 1.0), ("with τ", tau[n])):
        p = confidence(logits, temperature)
        for c in COSTS:
            paid[n, way, c] = cost(p, hit, c)
            promised = np.minimum(1 - p, c).mean()
            cells.append((f"{n:,} rows, {way}", f"{c}", f"{(1 - p < c).mean():.0%}",
                          f"{promised:.3f}", f"{paid[n, way, c]:.3f}"))  # fmt: skip
table(("", "a person costs", "answered", "promised cost", "paid"), cells)
if not QUICK:
    assert paid[4000, "as trained", 0.05] > 0.03 > 0.01 > paid[4000, "with τ", 0.05]

# %% [markdown]
# One seed is an anecdote. What is paid beyond c, over five seeds (0: as good as handing over all):

# %%
for way in ("raw", "mended"):
    table(
        (f"rows, {way}", *(f"c = {c}" for c in COSTS)),
        [
            (n, *(f"{x.min():+.3f} to {x.max():+.3f}" for x in over))
            for n in sizes
            for over in [[over_seeds(f"cost_{way}_{c}", n) - c for c in COSTS]]
        ],
    )
harm = np.array([[row[f"cost_mended_{c}"] - row[f"cost_raw_{c}"] for c in COSTS] for row in sweep])
print(f"what mending changes: {harm.min():+.3f} to {harm.max():+.3f}, mean {harm.mean():+.3f}")
assert (over_seeds("cost_raw_0.5", 16) > 0.5 + 0.015).all()
assert all((over_seeds(f"cost_mended_{c}", n) < c + 0.005).all() for n in sizes for c in COSTS)
assert all((over_seeds("cost_raw_0.05", n) > 0.05 - 1e-9).all() for n in sizes)
assert all((over_seeds("cost_mended_0.05", n) < 0.05 - 0.002).all() for n in sizes if n >= 128)
assert harm.mean() < -0.01 and 0 < harm.max() < 0.02

if not QUICK:  # the live runs are seed 0 of the sweep
    for n, (logits, hit) in judged.items():
        p = confidence(logits)
        assert abs(hit.mean() - over_seeds("accuracy", n)[0]) < 0.1
        assert abs(p.mean() - over_seeds("confidence_raw", n)[0]) < 0.1

# %% [markdown]
# **What this showed.** A model that is too sure can cost more than having no model (16 rows, a
# person at half the price of an error, every seed). A model that is not sure enough earns nothing
# where a person is cheap: at c = 0.05 the untouched runs hand over every question, also those that
# are right every time. With its τ, no run pays noticeably more than c. The mend is no free lunch:
# in a few cells it costs a little, for one number cannot straighten a bent diagram.
#
# **Where to stop with a debugger.** `metrics._scores` (one pass gives loss, hit, confidence and
# Brier), `metrics.calibration_error` (look at `gap` before the absolute value),
# `sweeps/confidence.py`, `fitted` (how flat the minimum is where no answer is wrong).
#
# **Exercises.** calibration, cross-entropy, prompt-mask.
