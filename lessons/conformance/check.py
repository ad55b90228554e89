"""Check the results of an implementation of LoRA and QLoRA against the conformance kit.

    python check.py RESULTS [KIT]

RESULTS is a JSON file {name: list of numbers}, or a safetensors file, with the names of
`expected.safetensors`; the order of the numbers is that of the rows. What it does not have is
listed as not tried. Prints a line per case: passed, or what is wrong and the likely cause. The exit
status is 1 if a case fails. This file needs NumPy, and nothing of minilora.
"""

import json
import sys
from pathlib import Path

import numpy as np

ROUNDING = 2.0**-24  # the largest relative error of one rounding to float32
BITS = ("codes", "absmax_codes", "refused")
KINDS = {"F32": np.float32, "F64": np.float64, "I32": np.int32, "U8": np.uint8, "I64": np.int64}


def bound_of(name):
    """Return how far a result may be from the expected one, as a share of its largest number.

    0: equal. A sum of K products in float32 is rounded by at most K·2⁻²⁴; the deepest results come
    from 22 products of at most 128 terms. A gradient comes from twice as many arrays. A scale or
    offset of NF4 may differ in its last bit, because a mean depends on the order of its sum. A
    training run magnifies the last bits: its first losses by little, its end by more.
    """
    last = name.rpartition("/")[2]
    if last in BITS:
        return 0.0
    if last in ("changed_codes", "rounded_logits", "rounded"):
        return 0.01  # where W + ΔW is at a midpoint, a last bit decides between two codes
    if last == "nested_absmax":
        return 16 * ROUNDING  # a difference from the mean, which is rounded in its last bits
    if name.startswith("nf4/"):
        return 4 * ROUNDING
    if name == "training/adamw":
        # Each of 12 steps rounds a factor of about 1, and moves it by 0.01·u, with |u| < 1.1. In
        # float32, β₂ is off by 2⁻²⁵, so 1 - β₂ = 0.001 by 500·2⁻²⁴ of itself, 1 - β₂ᵗ by up to
        # twice that, and u, which has the root of both, by up to 750·2⁻²⁴; all other roundings
        # make less than 250·2⁻²⁴.
        return 12 * (1 + 0.011 * 1000) * ROUNDING
    if "/step" in name:
        return 0.02  # Adam divides by √v: where a gradient is nearly 0, rounding has a part in it
    if name == "run/held_out":
        return 0.1
    if name.startswith("run/"):
        return 1e-4
    return (2 if name.startswith("training/") else 1) * 22 * 128 * ROUNDING


def wrong(name, result, expected):
    """Return "" if a result is right, and else what is wrong, in a few words."""
    if result.size != expected.size:
        return f"it has {result.size} numbers in place of {expected.size}"
    result, right = result.ravel(), np.float64(expected).ravel()
    if not np.isfinite(result).all():
        return f"{np.sum(~np.isfinite(result))} of its numbers are NaN or infinite"
    bound = bound_of(name) * np.abs(right).max()
    off = np.abs(result - right)
    if off.max() <= bound:
        return ""
    if result.size == 1:
        return f"it is {result[0]:.6g}, not {right[0]:.6g}"
    place = int(off.argmax())
    if bound == 0:
        numbers = f"number {place} is {result[place]:g}, not {right[place]:g}"
        return f"{np.sum(off > 0)} of {off.size} differ; {numbers}"
    return f"off by {off.max() / np.abs(right).max():.1e} of its size (bound {bound_of(name):.1e})"


def sample(numbers):
    """Return the numbers by which a known mistake is recognized: 20 at equal distances."""
    numbers = np.float64(numbers).ravel()
    return numbers[np.linspace(0, numbers.size - 1, min(20, numbers.size)).astype(int)]


def cause_of(name, result, expected, mistakes):
    """Return the likely cause of a wrong result, or ""."""
    result, right = result.ravel(), np.float64(expected).ravel()
    size = np.abs(right).max() or 1.0
    near = max(bound_of(name), 1e-6)
    known = mistakes.get(name, {}).items()
    if result.size == right.size:
        # how far the result is from that of each known mistake
        far = {cause: np.abs(sample(result) - numbers).max() for cause, numbers in known}
        if far and min(far.values()) <= min(near * size, np.abs(sample(result - right)).max() / 10):
            return min(far, key=far.get)
    if result.size != right.size or right.size == 1 or not np.isfinite(result).all():
        return ""
    if name == "training/adamw":  # the same mistake of another size, such as weight decay 0.1
        alike = {cause: cosine(result - right, numbers - right) for cause, numbers in known}
        if max(alike.values()) > 0.95:
            return max(alike, key=alike.get)
    if expected.ndim == 2:
        turned = result.reshape(expected.shape[::-1]).T.ravel()
        if np.abs(turned - right).max() <= near * size:
            return "it is transposed"
    factor = float(result @ right / (right @ right)) if right.any() else 0.0
    if np.abs(result - factor * right).max() <= near * size and abs(factor - 1) > near:
        return f"all numbers are {factor:.4g} times the right ones"
    if bound_of(name) and "/step" not in name and np.abs(result - right).max() <= 0.01 * size:
        return "it is nearly right: a computation in 16 bits, or another constant"
    return ""


def cosine(a, b):
    """Return |cos| of the angle between two differences; 0 if one of them is zero."""
    return abs(a @ b) / (np.linalg.norm(a) * np.linalg.norm(b) or 1.0)


def read_safetensors(path):
    raw = Path(path).read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    header.pop("__metadata__", None)
    arrays = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        numbers = np.frombuffer(raw[start + begin : start + end], KINDS[entry["dtype"]])
        arrays[name] = numbers.reshape(entry["shape"])
    return arrays


def array_of(path, name, numbers):
    try:
        return np.array(numbers, np.float64)
    except (TypeError, ValueError):
        sys.exit(f"{path}: {name} must be a list of numbers")


def read_results(path):
    try:
        if Path(path).suffix == ".json":
            found = json.loads(Path(path).read_text("utf-8"))
            return {name: array_of(path, name, numbers) for name, numbers in found.items()}
        return {name: np.float64(w) for name, w in read_safetensors(path).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        sys.exit(f"{path} is no JSON object {{name: numbers}} and no safetensors file: {error}")


def equal_to(name, result, expected):
    """Return which other expected result this one is, or ""."""
    for other, right in expected.items():
        comparable = other != name and right.size == result.size > 1 and right.any()
        if comparable and not wrong(other, result, right):
            return f"it is the result of {other}"
    return ""


def check(results, kit):
    """Yield (name, verdict, words) of every case: "passed", "FAILED" or "not tried"."""
    expected = read_safetensors(Path(kit) / "expected.safetensors")
    cases = json.loads((Path(kit) / "cases.json").read_text("utf-8"))
    for name in results.keys() - expected.keys():
        refused = f"{name}/refused" in expected
        yield name, "FAILED", "this adapter must be refused" if refused else "no case has this name"
    for name, right in expected.items():
        if name not in results:
            yield name, "not tried", ""
            continue
        words = wrong(name, results[name], right)
        if not words:
            yield name, "passed", ""
            continue
        cause = cause_of(name, results[name], right, cases["mistakes"])
        cause = cause or equal_to(name, results[name], expected)
        yield name, "FAILED", words + (f". Likely: {cause}" if cause else "")


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    kit = Path(sys.argv[2]) if len(sys.argv) == 3 else Path(__file__).parent / "kit"
    results = read_results(sys.argv[1])
    names = {"passed": [], "FAILED": [], "not tried": []}
    for name, verdict, words in check(results, kit):
        names[verdict].append(name)
        if verdict != "not tried":
            print(f"{verdict}  {name}" + (f": {words}" if words else ""))
    for name in names["not tried"]:
        print(f"not tried  {name}")
    print(", ".join(f"{len(some)} {verdict}" for verdict, some in names.items()))
    if names["FAILED"]:
        print(f"Begin with {names['FAILED'][0]}: the parts build on each other.")
    sys.exit(1 if names["FAILED"] or not names["passed"] else 0)


if __name__ == "__main__":
    main()
