"""Say from its numbers whether an adapter does anything, and whether it does as trained ones do.

Letters: W the weight of a projection without the adapter, ΔW what the adapter adds to it, Ŵ a
weight as it is read back from a few bits, σ the singular values of BA.
"""

from typing import NamedTuple

import numpy as np

from ..batching import collate
from ..layers import dense, value_and_grad
from ..lora import merge_projection
from ..methods.dora import M
from ..model import forward, loss
from ..quant.schemes import quantize_leaf
from ..tree import flatten, get, overlay, unflatten
from .metrics import batches

FACTORS = ("lora_A", "lora_B")
SCHEMES = ("nf4", "fp4", "int8")
# Trained adapters had ‖ΔW‖/‖W‖ from 4e-4 (three steps at 1e-4) to 3, and to 34 on random models.
# Below the lower limit, float16 (11 significant binary digits) rounds W + ΔW back to W.
LEAST, MOST = 1e-5, 100.0
FROM_MEDIAN = 100.0  # the projections of one adapter differed by a factor of 10 at most
# each projection of trained adapters had 0.12 to 0.9, after an exchange −0.2 to 0.05
DOWNHILL = 0.05
ROUNDING = 1e-6  # of float32, in the logits
MARGIN = 1.001  # after a few small steps, the loss on some rows may be a little higher
# of the columns of the table: the last fields of Row
HEADS = ("r", "α/r", "‖ΔW‖/‖W‖", "σ₁²/Σσ²", *SCHEMES, "downhill")
FORMS = ("d", ".3g", ".2g", *5 * (".0%",))


class Row(NamedTuple):
    """The numbers of one adapted projection."""

    path: str
    zero: tuple[str, ...]  # those of A, B and DoRA's m that are zero
    r: int
    scaling: float
    ratio: float  # ‖ΔW‖/‖W‖
    first: float  # σ₁²/Σσ²: 1 if BA has one direction, 1/r if it has r equal ones
    nf4: float  # the share of ΔW that is left after rounding; see `share_kept`
    fp4: float
    int8: float
    downhill: float  # see `directions`; NaN: unknown


def directions(adapters, model, examples):
    """Return {path of B: cosine of the angle between B and −∂L/∂B}, for the loss of these examples.

    It is the larger one of two: where training begins, at B = 0, and half way, at B/2. Training
    goes downhill. So a trained B has a cosine well above zero on its rows. After an exchange or a
    transposition, or on other rows, it is that of a random direction.
    """
    factors = {path: w for path, w in flatten(adapters).items() if path.endswith(".lora_B")}
    found = dict.fromkeys(factors, -1.0)
    for part in (np.float32(0), np.float32(0.5)):
        at = overlay(adapters, unflatten({path: part * b for path, b in factors.items()}))
        gradient = dict.fromkeys(factors, np.float32(0))
        for some in batches(examples):
            batch = collate([[example] for example in some])
            _, of_mean = value_and_grad(loss)(at, model, batch, None, True)  # in less memory
            for path in factors:
                gradient[path] = gradient[path] + batch["mask"].sum() * get(of_mean, path)
        for path, b in factors.items():
            g = gradient[path]
            cosine = share(-np.vdot(g, b), np.linalg.norm(g) * np.linalg.norm(b))
            found[path] = max(found[path], cosine)
    return found


def measure(path, adapters, model, original, downhill=np.nan):
    """Return the Row of the adapted projection at `path`.

    model: that of the adapter; original: the model before PiSSA or LoftQ changed it, or `model`.
    """
    node = overlay(get(model.base, path), get(adapters, path))
    node["weight"] = dense(node["weight"]).astype(np.float64)
    w = dense(get(original.base, path)["weight"])
    update = merge_projection(node)["weight"] - w
    a, b = node["lora_A"].astype(np.float64), node["lora_B"].astype(np.float64)
    # BA = Q_B·(R_B·R_Aᵀ)·Q_Aᵀ, and the small matrix R_B·R_Aᵀ has its singular values
    small = np.linalg.qr(b)[1] @ np.linalg.qr(a.T)[1].T
    squares = np.linalg.svd(small, compute_uv=False) ** 2
    nf4, fp4, int8 = (share_kept(path, w, update, scheme) for scheme in SCHEMES)
    return Row(
        path,
        tuple(name for name in (*FACTORS, M) if name in node and not node[name].any()),
        len(a),
        node["lora_scaling"],
        share(np.linalg.norm(update), np.linalg.norm(w)),
        share(squares[0], squares.sum()),
        nf4,
        fp4,
        int8,
        downhill,
    )


def share_kept(path, w, update, scheme):
    """Return the share of ΔW that is left if it is merged into W in `scheme`, and rounded again."""
    # ⟨round(Ŵ + ΔW) − Ŵ, ΔW⟩/‖ΔW‖², with Ŵ = round(W)
    start = dense(quantize_leaf(path, w, scheme))
    end = dense(quantize_leaf(path, np.float32(start + update), scheme))
    return share(np.vdot(end - start, update), np.vdot(update, update))


def share(part, whole):
    """Return part/whole, or 0 if there is nothing to divide by."""
    return float(part / whole) if whole else 0.0


def logits_change(adapters, model, original, tokens):
    """Return ‖z' − z‖/‖z‖ of the logits of a text, z' with the adapter and z without it."""
    z = centered(forward({}, original, [tokens]))
    return share(
        np.linalg.norm(centered(forward(adapters, model, [tokens])) - z), np.linalg.norm(z)
    )


def centered(z):
    """Subtract the mean of each position, which the softmax does not see."""
    return z - z.mean(axis=-1, keepdims=True)


def faults_of(rows):
    """Return what is wrong with the factors of an adapter, a text per fault."""
    median = np.median([row.ratio for row in rows if not row.zero] or [0])
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(fault_of(row, median), []).append(row.path)
    found.pop("", None)
    texts = []
    for fault, paths in found.items():
        first = ", ".join(paths[:3]) + (", …" if len(paths) > 3 else "")
        texts.append(f"{fault} in {len(paths)} of {len(rows)} projections ({first})")
    return texts


def fault_of(row, median):
    """Return what is wrong with one projection, or ""; median: of ‖ΔW‖/‖W‖."""
    if row.zero:
        return f"{' and '.join(row.zero)} is zero"
    if row.ratio < LEAST:
        return f"‖ΔW‖/‖W‖ is below {LEAST:g}"
    if not row.ratio <= MOST:
        return f"‖ΔW‖/‖W‖ is above {MOST:g}"
    if not median / FROM_MEDIAN <= row.ratio <= median * FROM_MEDIAN:
        return f"‖ΔW‖/‖W‖ is {FROM_MEDIAN:g} times more or less than the median"
    if row.downhill < DOWNHILL:
        return f"B does not lead downhill (below {DOWNHILL:.0%}) on these rows"
    return ""


def table(rows):
    """Return a line per name of a projection: the least and the largest number of its layers."""
    modules: dict[str, list[Row]] = {}
    for row in rows:
        modules.setdefault(row.path.rpartition(".")[2], []).append(row)
    lines = [("", *HEADS)]
    for name, group in modules.items():
        columns = zip(*(row[2:] for row in group))
        cells = [spread(numbers, form) for numbers, form in zip(columns, FORMS)]
        lines.append((f"{len(group)} {name}", *cells))
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(map(str.rjust, line, widths)) for line in lines)


def spread(numbers, form):
    """Return the least and the largest number as text, or the only one; "?": unknown."""
    if np.isnan(numbers).any():
        return "?"
    ends = [f"{number:{form}}" for number in (min(numbers), max(numbers))]
    return "–".join(dict.fromkeys(ends))
