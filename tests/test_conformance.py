"""The conformance kit: its files are those of its script, and right implementations pass."""

import json
from pathlib import Path

import numpy as np
import pytest

import minilora
from lessons.conformance import check, make
from minilora import LoraConfig, data, layers, nf4, optim
from minilora.config import InputError, TrainConfig
from minilora.formats.checkpoint import load_adapter
from minilora.layers import value_and_grad
from minilora.training import update
from minilora.tree import flatten, get, named_leaves, overlay, unflatten

KIT = Path(make.__file__).parent / "kit"
INPUTS = check.read_safetensors(KIT / "inputs.safetensors")
EXPECTED = check.read_safetensors(KIT / "expected.safetensors")
CASES = json.loads((KIT / "cases.json").read_text("utf-8"))


def failed(results):
    """Return {name: words} of the cases that fail; all that are given must be tried."""
    rows = check.check({n: np.float64(x) for n, x in results.items()}, KIT)
    tried = [row for row in rows if row[1] != "not tried"]
    assert len(tried) == len(results)
    return {name: words for name, verdict, words in tried if verdict != "passed"}


def parts(names):
    """Return the results of lesson 0 in all parts that it has."""
    found = {}
    for part in make.PARTS.values():
        found |= part(names, INPUTS)
    return found


def test_the_files_are_those_of_the_script(tmp_path):
    """In float64 the order of a sum may change the last bit of a float32 that is stored."""
    names = make.lesson()
    np.testing.assert_equal(make.inputs(), INPUTS)
    found, _ = make.lora(names, INPUTS, tmp_path)
    for file in (tmp_path / "adapters").rglob("*.*"):
        assert file.read_bytes() == (KIT / file.relative_to(tmp_path)).read_bytes()
    found |= parts(names)
    assert {name for name in EXPECTED if not name.startswith("run/")} == found.keys()
    for name, numbers in found.items():
        right = EXPECTED[name]
        ulp = 0 if right.dtype.kind == "u" else 2.0**-23
        assert np.abs(np.float64(numbers) - right).max() <= ulp * np.abs(right).max(), name
    micro = Path(minilora.__file__).parent / "data" / "bases" / "micro"
    for name in ("config.json", "model.safetensors"):
        assert (KIT / name).read_bytes() == (micro / name).read_bytes()
    assert CASES["version"] == make.VERSION


@pytest.mark.parametrize("changes", [
    [],
    [("offset = np.mean(absmax)", "offset = np.cumsum(absmax)[-1] / np.float32(len(absmax))")],
    [("return x @ dense(w).T", "return np.einsum('...i,oi->...o', x, dense(w))")],
    [("gate / (1 + np.exp(-gate)) * up", "gate * (0.5 + 0.5 * np.tanh(gate / 2)) * up")],
])  # fmt: skip
def test_lesson_0_and_its_right_variants_pass_in_float32(changes):
    """Another order of a sum, another exponential."""
    results = parts(make.lesson(changes, number=np.float32))
    assert len(results) > 70 and failed(results) == {}


# The kit's own mistakes, and others that it does not know, in forms that were seen in ports:
# (part, cause, changes of lesson 0, further names)
PLANTED = (
    *((part, cause, [(old, new)], {}) for part, cause, old, new in make.CHANGES),
    *((part, "", [(old, new)], {}) for part, old, new in (
        ("nf4", "-0.6961928009986877,", "-0.6971928009986877,"),
        ("nf4", "normalized[nested == 0] = -1", "normalized[nested == 0] = 0"),
        ("nf4", "np.float32(65535) + np.float32(0.5)", "np.float32(65535)"),
        ("base", "(np.arange(0, hd, 2) / hd)", "(np.arange(0, hd, 2) / (hd - 2))"),
        ("base", "p = p / np.sum(p, axis=-1, keepdims=True)", "p = p / np.sum(p)"),
        ("base", "(1 + np.exp(-gate)) * up", "(1 + np.exp(-1.702 * gate)) * up"),
        ("base", "x = x + mlp(h, layer, params)", "x = h + mlp(h, layer, params)"),
        ("training", "lambda g: g @ dense(w)", "lambda g: g @ dense(w) * 2"),
        ("training", "ALPHA / RANK * (x @ A.T @ B.T)", "RANK / ALPHA * (x @ A.T @ B.T)"),
        ("merge", "RANK, ALPHA = 8, 16", "RANK, ALPHA = 8, 4"),
    )),
    *(("training" if "clip" in cause else "adamw", cause, [], {"step_changes": [(old, new)]})
      for cause, old, new in (
        *make.STEP_CHANGES,
        # the same with other numbers
        ("the step has weight decay", make.MOVE, f"({make.MOVE} + 0.1 * adapters[n])"),
        ("β₂ is not 0.999", "t = step + 1", "BETA2 = 0.95"),
    )),
    *(("uneven", cause, changes, {"counts": counts}) for cause, changes, counts in make.UNEVEN),
)  # fmt: skip


@pytest.mark.parametrize("part, cause, changes, names", PLANTED)
def test_a_planted_mistake_fails_and_is_named(part, cause, changes, names):
    """In lesson 0 in float32."""
    with np.errstate(all="ignore"):
        results = make.PARTS[part](make.lesson(changes, number=np.float32) | names, INPUTS)
    words = failed(results).values()
    assert any(cause in line for line in words)


def test_mistakes_with_adapters_are_named(tmp_path):
    _, mistakes = make.lora(make.lesson(), INPUTS, tmp_path)
    named = {
        cause for name, cause, numbers in mistakes if cause in failed({name: numbers}).get(name, "")
    }
    assert named == {cause for _, cause, _ in mistakes}


@pytest.mark.parametrize("name, content, says", [
    ("results.json", '{"lora/nan/refused": "yes"}', "lora/nan/refused must be a list of numbers"),
    ("results.json", "[1]", "is no JSON object"),
    ("results.safetensors", "short", "is no JSON object"),
    ("results.safetensors", "\x02" + 7 * "\0" + "[]", "is no JSON object"),
])  # fmt: skip
def test_a_file_without_results_gets_one_line(tmp_path, name, content, says):
    path = tmp_path / name
    with pytest.raises(SystemExit, match="No such file"):
        check.read_results(path)
    path.write_text(content)
    with pytest.raises(SystemExit, match=says):
        check.read_results(path)


# ------------------------------------------------------------------------------ the package


def adapter_of(model):
    """Return the kit's factors as minilora's tree."""
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
    factors = {name: w for name, w in INPUTS.items() if ".lora_" in name}
    return overlay(minilora.get_peft_model(model, config).adapters, unflatten(factors))


def nf4_results():
    found = {}
    for name in ("normal", "ties", "special", "many"):
        q = nf4.quantize(INPUTS[f"nf4/{name}"], double_quant=True)
        absmax = q.stored_absmax
        found |= {
            f"nf4/{name}/codes": nf4.unpack_4bit(q.codes),
            f"nf4/{name}/absmax_codes": absmax.codes,
            f"nf4/{name}/nested_absmax": absmax.nested_absmax,
            f"nf4/{name}/offset": [absmax.offset],
            f"nf4/{name}/dequantized": q.dequantize(),
        }
    return found


def base_results(model):
    rope = layers.rope_cos_sin(np.arange(7)[None], model.config)
    layer = get(model.base, make.LAYER)
    x = INPUTS["base/x"]
    gate, up = (layers.linear(x, layer["mlp"][n]) for n in ("gate_proj", "up_proj"))
    found = {
        "base/rope": layers.apply_rope(INPUTS["base/rope"].swapaxes(1, 2), *rope),  # (N, T, H, hd)
        "base/norm": layers.rms_norm(
            x, layer["input_layernorm"]["weight"], model.config.rms_norm_eps
        ),
        "base/mlp": layers.linear(layers.swiglu(gate, up), layer["mlp"]["down_proj"]),
    }
    for i in range(len(make.PROMPTS)):
        tokens = INPUTS[f"base/prompt{i}"][None]
        found[f"base/logits{i}"] = minilora.forward({}, model, tokens)[0, -1]
    return found


def lora_results(model):
    found, tokens = {}, INPUTS["base/prompt1"][None]
    for name in make.ADAPTERS | make.LATER:
        adapters, used, _ = load_adapter(KIT / "adapters" / name, model)
        found[f"lora/{name}"] = minilora.forward(adapters, used, tokens)[0, -1]
    for name in make.REFUSED:
        try:
            load_adapter(KIT / "adapters" / name, model)
        except InputError:
            found[f"lora/{name}/refused"] = [1]
    return found


def training_results(model):
    texts = (*make.ROWS, make.SHORT_ROW)
    rows = [{"prompt": prompt, "completion": answer} for prompt, answer in texts]
    config = TrainConfig(mask_prompt=True)
    examples, _ = data.encode_rows(rows, minilora.load("micro").tokenizer, config)
    state = minilora.start(adapter_of(model), config)

    def gradient(*numbers):
        batch = data.collate([[examples[i]] for i in numbers])
        loss, grads = value_and_grad(minilora.loss)(state.adapters, model, batch)
        return loss, optim.global_norm(grads), grads

    found = {}
    for name, numbers in (("training/uneven", (0, 2)), ("training", (0, 1))):
        loss, norm, grads = gradient(*numbers)
        found |= {f"{name}/loss": [loss], f"{name}/norm": [norm]}
    found |= {f"training/grad/{name}": g for name, g in named_leaves(grads)}
    for t, (rate, max_norm) in enumerate(zip(make.RATES, make.MAX_NORMS), start=1):
        *_, grads = gradient(0, 1)
        state = update(state, optim.clip(grads, max_norm)[0], rate, config)
        for n in "AB":
            path = f"{make.PATH}.lora_{n}"
            found[f"training/step{t}/{n}"] = get(state.adapters, path) - INPUTS[path]
    alone = minilora.start({"x": INPUTS["training/adamw/start"]}, config)
    for g in INPUTS["training/adamw/gradients"]:
        alone = update(alone, {"x": g}, make.ADAMW_RATE, config)
    return found | {"training/adamw": alone.adapters["x"]}


def merge_results(model):
    tokens = INPUTS["base/prompt1"][None]
    merged = minilora.merge(adapter_of(model), model)
    again = minilora.quantize(merged, "nf4-dq")
    before, after = flatten(model.base), flatten(again.base)
    changed = sum(
        np.sum(nf4.unpack_4bit(before[path].codes) != nf4.unpack_4bit(after[path].codes))
        for path in after
        if "_proj" in path
    )
    weight = f"{make.PATH}.weight"
    return {
        "merge/weight": flatten(merged.base)[weight],
        "merge/logits": minilora.forward({}, merged, tokens)[0, -1],
        "merge/rounded": after[weight].dequantize(),
        "merge/changed_codes": [changed],
        "merge/rounded_logits": minilora.forward({}, again, tokens)[0, -1],
    }


def test_minilora_passes():
    dense, _ = minilora.load("micro")
    quantized, _ = minilora.load("micro", "nf4-dq")
    results = nf4_results() | base_results(dense) | lora_results(dense)
    results |= training_results(quantized) | merge_results(quantized)
    assert failed(results) == {}
