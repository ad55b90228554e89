"""The page that trains, in Chromium: it computes what minilora and lesson 0 compute.

    python -m pytest tests/book/test_explorer.py

It needs no built book: the page is assembled from its files, and its data comes from the book's
cache, or from a run of lesson 0.
"""

import base64
import json
import shutil
import time
from functools import cache

import numpy as np
import pytest
from models import as_dtype, moved
from selenium.webdriver import Keys
from test_book import INT4, PHONE, SIZE, blocks, errors, wait_for
from test_conformance import INPUTS, failed

import minilora
from lessons.book import explorer
from lessons.conformance import make
from lessons.conformance.check import read_safetensors
from minilora import LoraConfig, TrainConfig, layers, nf4
from minilora.batching import Example, collate
from minilora.layers import value_and_grad
from minilora.optim import get_lr
from minilora.tree import arrays, flatten, get, overlay, unflatten

MICRO, _ = minilora.load("micro")
DENSE = MICRO.base
PATHS = [p.removesuffix(".weight") for p in flatten(DENSE) if "_proj" in p]
CODEBOOKS = {
    "NF4": nf4.CODEBOOKS["nf4"],
    "int4": INT4,
    "2 bits": nf4.Codebook.from_values(np.float32([-1, -1 / 3, 1 / 3, 1])),
}
BITS = ("float32", *CODEBOOKS)
EPS = 2.0**-24  # the largest relative error of one rounding to float32
# The page adds in float64 and minilora in float32, where a sum of K terms is rounded by at most
# K·2⁻²⁴ of their size. A logit comes from 21 projections and the head, with K ≤ 128 terms each.
BOUND = 22 * 128 * EPS  # of the largest logit
# ΔW is a sum of 8 terms; then a product with α/r and one addition
MERGED = 10 * EPS  # of the largest weight
# The worker's code on an empty page: text() gives an array to the test.
TEXT = """
function text(x) {
  const bytes = new Uint8Array(x.buffer, x.byteOffset, x.byteLength);
  let letters = "";
  for (const byte of bytes) letters += String.fromCharCode(byte);
  return btoa(letters);
}
function parts({ codes, absmax, second }) {
  return [text(codes), text(absmax),
    second ? [text(second.codes), text(second.nestedAbsmax), second.offset] : null];
}
function weight([shape, data]) { return { shape, data: Float32Array.from(data) }; }
function seen(settings) { // the adapter of lesson 0, in a view
  run = { settings: DATA.recipe, factors: lessonFactors[settings.step], heldOut: new Map() };
  view = settings;
  return shown();
}
"""
ENGINE = f"""<!doctype html><meta charset='utf-8'>
<script src='data.js'></script><script src='tour.js'></script><script>
const all = document.createElement('script'); all.text = SOURCES; document.head.append(all)
</script><script>{TEXT}</script>"""
CALL = """
const [settings] = arguments;
const params = seen(settings), weights = {};
if (settings.merged && settings.kept) {
  const separate = { ...baseIn(settings.bits), ...adapterInView() };
  for (const path of settings.paths) {
    const { q } = params[path];
    weights[path] = [text(mergeWeight(path, separate).data), q ? parts(q) : null];
  }
}
const answer = generate(params, settings.prompt).map((step) => step.token);
const tokens = [...encode(settings.prompt), ...answer];
return { answer, logits: text(forward(params, tokens)), weights };
"""
QUANTIZE = """
const [numbers, bits] = arguments;
const q = quantize(Float32Array.from(numbers), bits);
if (bits === "NF4") q.second = doubleQuantize(q.absmax);
return [parts(q), text(dequantize(q))];
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The page and its data, in a folder of their own."""
    path = tmp_path_factory.mktemp("explorer")
    shutil.copytree(explorer.PAGE, path, dirs_exist_ok=True)
    explorer.write(path)
    (path / "engine.html").write_text(ENGINE)
    return path


@pytest.fixture(scope="module")
def fields(folder):
    """The fields of data.js, with the adapters as {name: array}."""
    text, _ = (folder / "data.js").read_text("utf-8").split("\nconst SOURCES", maxsplit=1)
    fields = json.loads(text.removeprefix("const DATA = ").rstrip(";"))
    file = folder / "adapters.safetensors"
    file.write_bytes(base64.b64decode(fields["adapters"]))
    return fields | {"adapters": read_safetensors(file)}


def visit(browser, folder, page="index.html"):
    browser.get((folder / page).as_uri())


@pytest.fixture
def engine(browser, folder):
    """Return a function that runs a script on the empty page with the worker's code."""
    visit(browser, folder, "engine.html")
    browser.set_script_timeout(600)  # some train
    return browser.execute_script


# ------------------------------------------------------------------------------------- equality


def array(text):
    return np.frombuffer(base64.b64decode(text), np.float32)


def text(w):
    return base64.b64encode(w.tobytes()).decode()


def rounded(w, bits):
    """Return minilora's codes and scales of w in these bits, and the weight they stand for."""
    x, absmax = nf4.normalize(w.ravel(), 64)
    codes = nf4.nearest(x, CODEBOOKS[bits])
    values = CODEBOOKS[bits].values[codes].reshape(-1, 64)
    return codes, absmax, (values * absmax[:, None]).reshape(w.shape)


def check_code(w, bits, parts, dequantized=None):
    """Assert equal codes and scales, bit for bit; return the weight that they stand for."""
    codes, absmax, second = parts
    right_codes, right, restored = rounded(w, bits)
    assert absmax == text(right)
    # int4's codes are the four bits of -7 to 7
    stored = (right_codes.astype(int) - 7) % 16 if bits == "int4" else right_codes
    assert codes == text(np.uint8(stored))
    if bits == "NF4":
        q = nf4.quantize(w, 64, double_quant=True)
        right = q.stored_absmax
        assert second == [text(right.codes), text(right.nested_absmax), float(right.offset)]
        restored = nf4.dequantize(q)
    if dequantized is not None:
        assert dequantized == text(restored)
    return restored


def model_in(bits):
    """Return micro with its projections in these bits, computed by minilora."""
    if bits == "float32":
        return MICRO
    if bits == "NF4":
        return minilora.quantize(MICRO, "nf4-dq")
    names = [f"{path}.weight" for path in PATHS]
    leaves = {name: rounded(get(DENSE, name), bits)[2] for name in names}
    return MICRO._replace(base=overlay(DENSE, unflatten(leaves)))


MODELS = {bits: model_in(bits) for bits in BITS}


def adapters_of(settings, factors):
    """Return the adapter of these settings as minilora's tree."""
    leaves, k = {}, settings["kept"]
    for path in settings["paths"] if k else []:
        A, B = (np.float64(factors[f"{settings['step']}.{path}.lora_{name}"]) for name in "AB")
        u, s, vt = np.linalg.svd(B @ A, full_matrices=False)
        leaves[f"{path}.lora_A"] = np.float32(vt[:k])
        leaves[f"{path}.lora_B"] = np.float32(u[:, :k] * s[:k])
        leaves[f"{path}.lora_scaling"] = settings["factor"] * 16 / 8
        leaves[f"{path}.lora_dropout"] = 0.0
    return unflatten(leaves)


def random_settings(n, fields):
    """Draw n settings of the page's controls."""
    rng = np.random.default_rng(0)
    for i in range(n):
        share = rng.choice([0.3, 0.8, 1.0])
        prompt = fields["questions"][rng.integers(20)][0]
        if i % 4 == 3:  # a free text
            prompt = "".join(chr(c) for c in rng.integers(32, 127, rng.integers(1, 90)))
        yield {
            "prompt": prompt,
            "step": int(rng.choice(fields["steps"])), "factor": float(rng.integers(17)) / 4,
            "kept": int(rng.integers(9)), "bits": str(rng.choice(BITS)),
            "merged": bool(rng.integers(2)),
            "paths": [path for path in PATHS if rng.random() < share],
        }  # fmt: skip


def reference(weights, settings, factors):
    """Return minilora's (adapters, model) for these settings; the page's merged weights agree."""
    adapters, model = adapters_of(settings, factors), MODELS[settings["bits"]]
    if not settings["merged"]:
        return adapters, model
    merged, leaves = flatten(minilora.merge(adapters, model).base), {}
    for path, (data, parts) in weights.items():
        right = merged[f"{path}.weight"]
        w = array(data).reshape(right.shape)
        assert np.abs(w - right).max() <= MERGED * np.abs(right).max(), path
        # a last bit can decide between two codes, so minilora rounds the page's sum
        leaves[f"{path}.weight"] = check_code(w, settings["bits"], parts) if parts else w
    return {}, model._replace(base=overlay(model.base, unflatten(leaves)))


def test_the_codes_are_minilora_s_bit_for_bit(engine):
    """Codes and scales, for the ties, and for the weights of micro."""
    single = blocks(64, CODEBOOKS.values())
    whole = np.concatenate(single)
    for bits in CODEBOOKS:
        for w in [*single, whole, *(get(DENSE, path)["weight"] for path in PATHS)]:
            parts, dequantized = engine(QUANTIZE, w.ravel().tolist(), bits)
            check_code(w, bits, parts, dequantized)


def test_200_random_settings_have_minilora_s_logits_and_answers(engine, fields):
    for i, settings in enumerate(random_settings(200, fields)):
        page = engine(CALL, settings)
        prompt, answer = list(settings["prompt"].encode()), page["answer"]
        adapters, model = reference(page["weights"], settings, fields["adapters"])
        plain = model._replace(ops=layers)
        right = minilora.forward(adapters, plain, np.array([prompt + answer]))[0]
        bound = BOUND * np.abs(right).max()
        assert np.abs(array(page["logits"]).reshape(right.shape) - right).max() <= bound, settings
        # Equal choices after the same tokens, one by one: the answers are equal.
        for row, token in zip(right[len(prompt) - 1 :], answer):
            assert row[token] >= row.max() - 2 * bound, settings
        assert len(answer) == 24 or answer.index(255) == len(answer) - 1, settings
        if i < 8:
            ours = list(minilora.generate(adapters, model, prompt, max_tokens=24))
            assert answer == (ours if len(ours) == 24 else [*ours, 255]), settings


# ------------------------------------------------------------------------------------- training


GRADS = """
const [{ bits, alpha, row }, factors] = arguments;
const adapter = Object.fromEntries(Object.entries(factors).map(([n, w]) => [n, weight(w)]));
const rank = Object.values(adapter).length ? Object.values(adapter)[0].shape[0] : 1;
const params = setUp(bits, { ...adapter, scaling: alpha / rank });
const found = lossAndGrads(params, row);
const grads = Object.fromEntries(Object.entries(found.grads).map(([n, g]) => [n, text(g)]));
return [found.loss, grads, loss(params, row)];
"""


def plain(factors):
    """Return factors as JSON."""
    return {name: [list(w.shape), w.ravel().tolist()] for name, w in factors.items()}


def test_the_loss_and_its_gradients_are_autograd_s(engine, fields):
    """Each A and B of 50 settings, against minilora's plain operations in float64.

    The page rounds an array to float32 after each operation: about 75 arrays on the way to the loss
    and back. Softmax and the norms may enlarge an error; a factor of 8 covers that.
    """
    rng = np.random.default_rng(0)
    for _ in range(50):
        rank, alpha, bits = int(rng.integers(1, 17)), float(rng.integers(1, 65)), rng.choice(BITS)
        prompt, answer = fields["questions"][rng.integers(20)]
        prompt = prompt[int(rng.integers(20)) :]
        if rng.random() < 0.3:
            answer = answer.strip()  # its first token is a surprise
        share = rng.choice([0.3, 1.0])
        paths = [PATHS[0], *(path for path in PATHS[1:] if rng.random() < share)]
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=paths)
        adapters, model = minilora.get_peft_model(MODELS[bits], config, rng)
        # A as it begins, and random numbers in place of the zeros of B
        adapters = moved(
            adapters, lambda w: np.float32(np.where(w, w, rng.normal(0, 0.1, w.shape)))
        )
        settings = {"bits": str(bits), "alpha": alpha, "row": [[prompt, answer]]}
        factors = plain(flatten(arrays(adapters)))
        loss, grads, again = engine(GRADS, settings, factors)
        base = as_dtype(minilora.merge({}, model).base, np.float64)
        tokens = [*(prompt + answer).encode(), 255]
        row = Example(tokens, [i >= len(prompt) for i in range(len(tokens))])
        right, right_grads = value_and_grad(minilora.loss)(
            as_dtype(adapters, np.float64), model._replace(base=base, ops=layers), collate([[row]])
        )
        assert loss == again == pytest.approx(right, rel=75 * 8 * EPS)
        for name, g in flatten(right_grads).items():
            error = np.linalg.norm(array(grads[name]).reshape(g.shape) - g) / np.linalg.norm(g)
            assert error < 75 * 8 * EPS


PORT = """
// the conformance kit, computed by the page's own code; `given` has {name: [shape, numbers]}
const [given, rows, unevenRows, path, rates, maxNorms, rate] = arguments, found = {};
const numbers = (name) => Float32Array.from(given[name][1]);
const ids = (name) => Array.from(given[name][1]);
for (const name of ["normal", "ties", "special", "many"].map((kind) => `nf4/${kind}`)) {
  const q = quantize(numbers(name), "NF4");
  q.second = doubleQuantize(q.absmax);
  found[`${name}/codes`] = q.codes;
  found[`${name}/absmax_codes`] = q.second.codes;
  found[`${name}/nested_absmax`] = q.second.nestedAbsmax;
  found[`${name}/offset`] = [q.second.offset];
  found[`${name}/dequantized`] = dequantize(q);
}
const layer = "model.layers.0", x = numbers("base/x"), dense = baseIn("float32");
found["base/norm"] = rmsNorm(x, dense[`${layer}.input_layernorm`]);
found["base/attention"] = attention(x, layer, dense, {});
found["base/mlp"] = mlp(x, layer, dense, {});
for (const i of [0, 1, 2]) {
  const tokens = ids(`base/prompt${i}`);
  found[`base/logits${i}`] = forward(dense, tokens, {}, tokens.length - 1);
}
run = startTraining({ rows: "a → b", rank: 8, alpha: 16, bits: "NF4", paths: PATHS, seed: 0 });
for (const name of Object.keys(run.factors)) run.factors[name] = weight(given[name]);
const merged = setUp("NF4", adapterOf(run)), prompt = ids("base/prompt1");
for (const name of PATHS) {
  merged[name] = mergeWeight(name, merged);
  for (const n of "AB") delete merged[`${name}.lora_${n}`];
}
found["merge/weight"] = merged[path].data;
found["merge/logits"] = forward(merged, prompt, {}, prompt.length - 1);
const rounded = setUp("NF4", adapterOf(run), true);
found["merge/rounded"] = dequantize(rounded[path].q);
view = null;
found["merge/changed_codes"] = [changedCodes(rounded).changed];
found["merge/rounded_logits"] = forward(rounded, prompt, {}, prompt.length - 1);
const averages = () => Object.fromEntries(
  Object.entries(run.factors).map(([name, w]) => [name, zeros(w.data)]));
const apart = { ...run, factors: { ...run.factors }, m: averages(), v: averages() };
const uneven = trainStep(apart, unevenRows); // its step is not read
[found["training/uneven/loss"], found["training/uneven/norm"]] = [[uneven.loss], [uneven.norm]];
const [data, gradients] = [numbers("training/adamw/start"), numbers("training/adamw/gradients")];
const alone = { settings: { rate, warmup: 0, steps: Infinity }, step: 0, factors: { x: { data } } };
[alone.m, alone.v] = [{ x: zeros(data) }, { x: zeros(data) }];
for (let at = 0; at < gradients.length; at += data.length) {
  adamw(alone, { x: gradients.slice(at, at + data.length) }, 1);
}
found["training/adamw"] = alone.factors.x.data;
rates.forEach((rate, i) => {
  // a constant rate
  Object.assign(run.settings, { rate, warmup: 0, steps: Infinity, maxNorm: maxNorms[i] });
  const { loss, norm, grads } = trainStep(run, rows);
  if (i === 0) {
    [found["training/loss"], found["training/norm"]] = [[loss], [norm]];
    for (const [name, g] of Object.entries(grads)) found[`training/grad/${name}`] = g;
  }
  for (const n of "AB") {
    const name = `${path}.lora_${n}`, begin = numbers(name);
    found[`training/step${i + 1}/${n}`] = run.factors[name].data.map((x, k) => x - begin[k]);
  }
});
return Object.fromEntries(Object.entries(found).map(([name, x]) => [name, Array.from(x)]));
"""


UNEVEN = make.ROWS[0], make.SHORT_ROW
GIVEN = make.ROWS, UNEVEN, make.PATH, make.RATES, make.MAX_NORMS, make.ADAMW_RATE


def test_it_passes_the_conformance_kit(engine):
    found = engine(PORT, plain(INPUTS), *GIVEN)
    assert len(found) > 70 and failed(found) == {}
    config = TrainConfig(iters=200, learning_rate=2e-3, warmup_ratio=0.06)
    script = "return [...Array(200).keys()].map((step) => rateAt(step, arguments[0]))"
    rates = engine(script, {"rate": 2e-3, "steps": 200, "warmup": 12})
    np.testing.assert_allclose(rates, [get_lr(step, config) for step in range(200)], rtol=4 * EPS)


RUN = """
const settings = { ...START, ...arguments[0] };
settings.paths = PATHS.filter(WHERE[settings.where]);
settings.zero = settings.start === "A = B = 0";
[run, view] = [startTraining(settings), null];
const losses = [];
for (let step = 0; step < arguments[1]; step++) losses.push(trainStep(run).loss);
const { loss, right, of, answer } = report(shown());
const rows = [...Array(50).keys()].flatMap(() => nextRows(run));
const seen = rows.some((row) => run.heldOut.has(row.join("")));
const zero = Object.values(run.factors).every((w) => !w.data.some(Boolean));
return { losses, loss, right, of, answer, seen, zero };
"""


BEGIN = """
run = startTraining({ ...START, paths: PATHS, rows: "Where is the {thing}? → In the {place}." });
const drawn = [...Array(500)].flatMap(() => nextRows(run)).map((row) => row.join(""));
const A = run.factors[`${PATHS[0]}.lora_A`];
const moved = [1, 2].map(() => {
  trainStep(run);
  return run.factors[`${PATHS[0]}.lora_B`].data.some(Boolean);
});
return [moved, run.heldOut.size, drawn.filter((row) => run.heldOut.has(row)).length,
  new Set(drawn).size, A.shape[1], text(A.data)];
"""


def test_a_run_begins_with_rows_held_out_and_with_random_a(engine):
    """Of 16·8 rows, 8 are held out, and 1,000 draws find all 120 others: 120·e⁻⁸ are missed.

    The rate of the first step is zero.
    """
    moved, *counts, inputs, A = engine(BEGIN)
    assert counts == [8, 0, 120] and moved == [False, True]
    x = array(A) * inputs**0.5  # uniform in ±1: 384 numbers have a mean of 0 ± 0.03
    assert np.abs(x).max() <= 1 and np.abs(x.mean()) < 0.15 and x.min() < -0.9 < 0.9 < x.max()


def test_the_page_s_own_recipe_learns(engine):
    """400 steps of two rows, and none of the rows that judge is trained on."""
    end = engine(RUN, {}, 400)
    assert (end["right"], end["of"], end["seen"]) == (8, 8, False)
    assert engine(RUN, {"start": "A = B = 0"}, 15)["zero"]
    garbled = engine(RUN, {"bits": "2 bits"}, 0)
    assert garbled["loss"] > 1.1 * engine(RUN, {}, 0)["loss"]


@pytest.mark.long
def test_the_predictions_end_as_the_page_says(engine):
    """What PREDICTIONS in tour.js explains is what the runs give."""

    def right(steps, **settings):
        return engine(RUN, settings, steps)["right"]

    assert right(400, rank=1) > 0 and right(400, bits="2 bits") > 0 and right(400, rate=0.03) == 0
    assert right(200, rank=1) == 0, "r = 1 takes longer"
    assert right(200) == 8


# ------------------------------------------------------------------------------------- the page


def text_of(browser, name):
    return browser.execute_script("return byId(arguments[0]).textContent", name)


def wait_for_text(browser, name, part):
    wait_for(lambda: part in text_of(browser, name), f"{name} does not get “{part}”")


def click(browser, name):
    browser.find_element("id", f"x-{name}").click()


@pytest.fixture
def page(browser, folder):
    """Give the browser at the page, which is ready to train; at the end it has no errors."""
    visit(browser, folder)
    wait_for_text(browser, "step", "tep 0")
    yield browser
    assert not errors(browser)


def choose(browser, name, value):
    script = """const field = byId(arguments[0]);
        field[field.type === "checkbox" ? "checked" : "value"] = arguments[1];
        field.dispatchEvent(new Event("input", { bubbles: true }));"""
    browser.execute_script(script, name, value)


def test_the_files_of_the_page_are_small(folder):
    """test_book.py opens the page and asserts that it needs no network."""
    needed = {path.name for path in explorer.PAGE.iterdir()} | {"data.js", "explorer.png"}
    assert sum((folder / name).stat().st_size for name in needed) < 1.5e6


def test_it_trains_pauses_and_goes_on(page):
    base = text_of(page, "base")
    assert text_of(page, "answer") == base, "B is zero, so the adapter changes nothing"
    click(page, "one")
    wait_for_text(page, "step", "tep 1")
    click(page, "train")
    wait_for_text(page, "step", "tep 20")
    click(page, "train")
    wait_for(lambda: text_of(page, "train") == "Train", "it does not pause")
    time.sleep(0.5)  # the step that is being made comes to its end
    step = page.execute_script("return curve.at(-1).step")
    time.sleep(0.3)
    assert page.execute_script("return curve.at(-1).step") == step < 60
    choose(page, "rank", "2")
    wait_for_text(page, "step", "tep 0")
    assert page.execute_script("return [curve.length, former.length]") == [1, step + 1]


def test_a_merge_is_said_and_undone(page):
    page.find_element("css selector", "[data-experiment=merge]").click()
    wait_for_text(page, "note", "→")
    note = text_of(page, "note")
    assert "rounded to NF4: loss 2.281 → 4.062. 82 of 82,944 weights changed" in note
    assert page.find_element("id", "x-rest").is_displayed()
    click(page, "merge")
    wait_for_text(page, "score", "loss 2.281")
    assert text_of(page, "note") == ""


WRONG = {
    "": "There are no rows: write “prompt → answer”, one per line.",
    "Who?": "Line 1 is not “prompt → answer”: write one arrow (→ or ->).",
    "a → b\n\n→ c": "Line 3 is not “prompt → answer”: write one arrow (→ or ->).",
    "a → b → c": "Line 1 is not “prompt → answer”: write one arrow (→ or ->).",
    "{nam} → x": "Line 1 has {nam}: the words that are drawn are {name}, {colour}, {thing}, "
    "{place}.",
    "Ada → 🪁": "Line 1 has “🪁”: the model knows English letters only.",
    "a → " + "b" * 200: "Line 1 is longer than 160 characters.",
}


def test_wrong_input_gets_a_sentence(page):
    for rows, sentence in WRONG.items():
        choose(page, "rows", rows)
        wait_for(lambda right=sentence: text_of(page, "problem") == right, sentence)
        click(page, "one")
    choose(page, "rows", "Who is here? -> Nobody.")
    wait_for(lambda: text_of(page, "problem") == "", "the row is right now")
    by_heart = page.find_element("id", "x-by-heart")
    wait_for(by_heart.is_displayed, "nothing is held out")
    choose(page, "question", "Ada keeps a 🪁")
    wait_for_text(page, "question-problem", "🪁")


def test_a_link_has_the_rows_the_settings_and_the_seed(page):
    own = {
        "rows": "Who is {name}? → A friend & more.\na → b", "rank": "2", "alpha": "32",
        "bits": "int4", "where": "by switch", "start": "A = B = 0", "seed": 7,
    }  # fmt: skip
    for name, value in own.items():
        choose(page, name, value)
    page.execute_script("setSwitches('paths', (path) => path.includes('up')); startAgain()")
    link = page.execute_script("return toLink(settings)")
    back = "const { paths, ...rest } = fromLink(arguments[0]); return [paths.length, rest]"
    switched, settings = page.execute_script(back, link)
    assert switched == 3
    assert {name: settings[name] for name in own} == own
    start = page.execute_script("return START")
    for hash in ("#", "#rank=3&seed=x&rate=9&bits=<b>", "#rate=-1&start="):
        assert page.execute_script("return fromLink(arguments[0])", hash) == start


def test_it_works_with_the_keyboard_alone_and_has_labels(page):
    fields = page.find_elements("css selector", ".explorer :is(input, select, button, textarea)")
    for field in fields:
        if field.is_displayed():
            assert field.accessible_name, field.get_attribute("outerHTML")
    for canvas in page.find_elements("css selector", ".explorer canvas"):
        if canvas.is_displayed():
            assert canvas.accessible_name and canvas.aria_role in ("img", "image")
    page.execute_script("byId('train').focus()")
    seen = []
    for _ in range(80):
        seen.append(page.switch_to.active_element.get_attribute("id"))
        page.switch_to.active_element.send_keys(Keys.TAB)
    every = "train one merge copy rows rank rate watch yes factor kept"
    assert {f"x-{name}" for name in every.split()} <= set(seen)
    page.find_element("css selector", "[data-experiment=alpha]").send_keys(Keys.ENTER)
    wait_for_text(page, "factor-value", "0.5 times")
    page.find_element("id", "x-factor").send_keys(Keys.ARROW_RIGHT)
    wait_for_text(page, "factor-value", "0.75 times")
    wait_for_text(page, "losses", "sentences")


LOSS = """
const [settings, names, rows] = arguments;
const on = (path) => names.some((name) => path.includes(name));
const params = seen({ step: 200, factor: 1, kept: 8, bits: "NF4", merged: false,
  paths: PATHS.filter(on), ...settings });
return [loss(params, DATA[rows]), negativeLogLikelihood(params, DATA[rows][0]).right];
"""


def test_the_experiments_show_what_the_page_says(engine):

    @cache
    def result(*names, rows="questions", **settings):
        return engine(LOSS, settings, names or ["_proj"], rows)

    def loss(*names, **settings):
        return result(*names, **settings)[0]

    assert round(loss("self_attn"), 2) == 0.83 and round(loss("mlp"), 2) == 1.41
    names = sorted({path.rpartition(".")[2] for path in PATHS})
    without = {name: loss(*(other for other in names if other != name)) for name in names}
    assert set(sorted(without, key=without.get)[-2:]) == {"q_proj", "k_proj"}
    assert 1.5 * loss() < loss(merged=True) < 4 * loss()
    assert loss() < loss(bits="float32") < loss(bits="int4") < 0.2 < 4 < loss(bits="2 bits")
    assert loss() < min(loss(factor=0.75), loss(factor=1.5))
    assert not result(kept=1)[1] and result(kept=4)[1] and loss(kept=4) < 0.06
    assert round(loss(), 2) == 0.03 and not result(factor=0.5)[1] and not result(factor=4)[1]
    # kept=0: the base alone
    own = [loss(bits=bits, kept=0, rows="notes") for bits in BITS]
    assert [round(loss(bits=bits, kept=0), 2) for bits in BITS] == [4.03, 4.23, 3.81, 4.98]
    assert np.ptp(own[:3]) < 0.004 and own[3] > 0.9


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_small_phone_and_follows_the_colours(browser, folder, scheme, emulate):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    emulate("setDeviceMetricsOverride", **PHONE | {"width": 320})
    emulate("setEmulatedMedia", features=features)
    visit(browser, folder)
    wait_for_text(browser, "step", "tep 0")
    assert browser.execute_script(SIZE) == [320, 320]
    bar = "return getComputedStyle(document.querySelector('.x-bar')).backgroundColor"
    assert (browser.execute_script(bar) == "rgb(255, 255, 255)") == (scheme == "light")


def test_without_javascript_there_is_a_still_picture(browser, folder, emulate):
    emulate("setScriptExecutionDisabled", value=True)
    visit(browser, folder)
    picture = browser.find_element("css selector", "img[alt]")
    wait_for(lambda: picture.size["width"] > 100, "the picture is not shown")
