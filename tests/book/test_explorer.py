"""The explorer's page in Chromium computes what minilora computes, and can be used by everybody.

    python -m pytest tests/book/test_explorer.py

It needs no built book: the page is assembled from its files, and its data comes from the book's
cache, or from a run of lesson 0.
"""

import base64
import json
import shutil
import statistics
import time

import numpy as np
import pytest
from selenium.webdriver import Keys
from test_book import PHONE, requests, wait_for

import minilora
from lessons.book import explorer
from minilora import layers, nf4
from minilora.double_quant import double_dequantize
from minilora.formats.safetensors_file import read_header
from minilora.tree import flatten, get, overlay, unflatten

MICRO, _ = minilora.load("micro")
DENSE = MICRO.base
PATHS = [p.removesuffix(".weight") for p in flatten(DENSE) if "_proj" in p]
CODEBOOKS = {
    "NF4": nf4.CODEBOOKS["nf4"],
    "int4": nf4.Codebook.from_values(np.float32(np.arange(-7, 8) / 7)),
    "2 bits": nf4.Codebook.from_values(np.float32([-1, -1 / 3, 1 / 3, 1])),
}
BITS = ("float32", *CODEBOOKS)
# The page adds in float64 and minilora in float32, where a sum of K terms is rounded by at most
# K·2⁻²⁴ of their size. A logit comes from 21 projections and the head, with K ≤ 128 terms each.
BOUND = 22 * 128 * 2.0**-24  # of the largest logit
# ΔW is a sum of 8 terms; then a product with α/r and one addition
MERGED = 10 * 2.0**-24  # of the largest weight
CALL = """
const [settings, tokens] = arguments;
const text = (x) => {
  const bytes = new Uint8Array(x.buffer, x.byteOffset, x.byteLength);
  let letters = "";
  for (const byte of bytes) letters += String.fromCharCode(byte);
  return btoa(letters);
};
const parts = ({ codes, absmax, second }) => [text(codes), text(absmax),
  second ? [text(second.codes), text(second.nestedAbsmax), second.offset] : null];
const params = setUp(settings), weights = {};
const separate = setUp({ ...settings, merged: false });
for (const path of settings.merged && settings.rank ? settings.switches : []) {
  const { q } = params[path];
  weights[path] = [text(mergeWeight(path, separate).data), q ? parts(q) : null];
}
return { logits: text(forward(params, tokens)), weights };
"""
QUANTIZE = CALL.partition("const params")[0].replace("[settings, tokens]", "[numbers, bits]") + (
    "const q = quantize(Float32Array.from(numbers), bits);"
    "if (bits === 'NF4') q.second = doubleQuantize(q.absmax);"
    "return [parts(q), text(dequantize(q))];"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The page and its data, in a folder of their own."""
    path = tmp_path_factory.mktemp("explorer")
    shutil.copytree(explorer.PAGE, path, dirs_exist_ok=True)
    explorer.write(path)
    return path


@pytest.fixture(scope="module")
def fields(folder):
    """The fields of data.js, with the adapters as {name: array}."""
    text = (folder / "data.js").read_text("utf-8")
    fields = json.loads(text.removeprefix("const DATA = ").rstrip(";\n"))
    file = folder / "adapters.safetensors"
    file.write_bytes(base64.b64decode(fields["adapters"]))
    entries = read_header(file)
    return fields | {"adapters": {name: entry.read() for name, entry in entries.items()}}


def visit(browser, folder):
    browser.get((folder / "index.html").as_uri())


def wait_for_losses(browser):
    done = "return document.getElementById('x-loss').textContent.includes('base')"
    wait_for(lambda: browser.execute_script(done), "the losses do not come")


# ------------------------------------------------------------------------------------- equality


def array(text, dtype=np.float32):
    return np.frombuffer(base64.b64decode(text), dtype)


def check_code(w, bits, parts, dequantized=None):
    """Assert equal codes and scales, bit for bit; return the weight that they stand for."""
    codes, absmax, second = parts
    code = CODEBOOKS[bits]
    x, right = nf4.normalize(w.ravel(), 64)
    assert np.array_equal(array(absmax).view(np.uint32), right.view(np.uint32))
    right_codes = nf4.nearest(x, code)
    # int4's codes are the four bits of -7 to 7
    stored = (right_codes.astype(int) - 7) % 16 if bits == "int4" else right_codes
    assert np.array_equal(array(codes, np.uint8), stored)
    if bits == "NF4":
        q = nf4.quantize(w, 64, double_quant=True)
        assert np.array_equal(nf4.pack_4bit(array(codes, np.uint8)), q.codes)
        assert np.array_equal(array(second[0], np.uint8), q.stored_absmax.codes)
        assert np.array_equal(array(second[1]), q.stored_absmax.nested_absmax)
        assert np.float32(second[2]) == q.stored_absmax.offset == second[2]
        right = double_dequantize(q.stored_absmax)
    restored = (code.values[right_codes].reshape(-1, 64) * right[:, None]).reshape(w.shape)
    if dequantized is not None:
        assert np.array_equal(array(dequantized).reshape(w.shape), restored)
    return restored


def model_in(bits):
    """Return micro with its projections in these bits, computed by minilora."""
    if bits == "float32":
        return MICRO
    if bits == "NF4":
        return minilora.quantize(MICRO, "nf4-dq")
    leaves = {}
    for path in PATHS:
        w = get(DENSE, path)["weight"]
        x, absmax = nf4.normalize(w.ravel(), 64)
        values = CODEBOOKS[bits].values[nf4.nearest(x, CODEBOOKS[bits])]
        leaves[f"{path}.weight"] = (values.reshape(-1, 64) * absmax[:, None]).reshape(w.shape)
    return MICRO._replace(base=overlay(DENSE, unflatten(leaves)))


MODELS = {bits: model_in(bits) for bits in BITS}


def adapters_of(settings, factors):
    """Return the adapter of these settings as minilora's tree."""
    leaves, k = {}, settings["rank"]
    for path in settings["switches"] if k else []:
        leaves[f"{path}.lora_A"] = factors[f"{settings['step']}.{path}.lora_A"][:k]
        leaves[f"{path}.lora_B"] = factors[f"{settings['step']}.{path}.lora_B"][:, :k]
        leaves[f"{path}.lora_scaling"] = settings["alpha"] / 8
        leaves[f"{path}.lora_dropout"] = 0.0
    return unflatten(leaves)


def random_settings(n, fields, seed=0):
    """Draw n settings of the page's controls."""
    rng = np.random.default_rng(seed)
    for i in range(n):
        share = rng.choice([0.3, 0.8, 1.0])
        prompt = fields["questions"][rng.integers(20)][0]
        if i % 4 == 3:  # a free text
            prompt = "".join(chr(c) for c in rng.integers(32, 127, rng.integers(1, 90)))
        yield {
            "prompt": prompt,
            "step": int(rng.choice(fields["steps"])), "alpha": float(rng.integers(17)) * 4,
            "rank": int(rng.integers(9)), "bits": str(rng.choice(BITS)),
            "merged": bool(rng.integers(2)),
            "switches": [path for path in PATHS if rng.random() < share],
        }  # fmt: skip


def reference(browser, settings, factors, tokens=(65,)):
    """Return (the page's answer, minilora's adapters and model for these settings)."""
    adapters, model = adapters_of(settings, factors), MODELS[settings["bits"]]
    page = browser.execute_script(CALL, settings, list(tokens))
    if not settings["merged"]:
        return page, adapters, model
    merged, leaves = flatten(minilora.merge(adapters, model).base), {}
    for path, (text, parts) in page["weights"].items():
        right = merged[f"{path}.weight"]
        w = array(text).reshape(right.shape)
        assert np.abs(w - right).max() <= MERGED * np.abs(right).max(), path
        # a last bit can decide between two codes, so minilora rounds the page's sum
        leaves[f"{path}.weight"] = check_code(w, settings["bits"], parts) if parts else w
    return page, {}, model._replace(base=overlay(model.base, unflatten(leaves)))


def check(browser, fields, settings):
    """Assert that the page's logits and greedy answer are minilora's; return the error's share."""
    prompt = list(settings["prompt"].encode())
    _, adapters, model = reference(browser, settings, fields["adapters"])
    answer = list(minilora.generate(adapters, model, prompt, max_tokens=24))
    page = browser.execute_script(CALL, settings, prompt + answer)
    logits = array(page["logits"]).reshape(-1, 256)
    model = model._replace(ops=layers)
    right = minilora.forward(adapters, model, np.array([prompt + answer]))[0]
    bound = BOUND * np.abs(right).max()
    error = np.abs(logits - right).max()
    assert error <= bound, settings
    # Equal choices after the same tokens, one by one: the answers are equal.
    wanted = [*answer, 255] if len(answer) < 24 else answer
    for row, token in zip(logits[len(prompt) - 1 :], wanted):
        second, first = np.sort(row)[-2:]
        assert np.argmax(row) == token or first - second <= 2 * bound, settings
    return error / bound


def check_losses(browser, fields, settings):
    """Assert that the loss of questions is minilora's, also if the first token is a surprise."""
    _, adapters, model = reference(browser, settings, fields["adapters"])
    model = model._replace(ops=layers)
    rows = fields["questions"][:2]
    for prompt, answer in [*rows, *((prompt, answer.strip()) for prompt, answer in rows)]:
        script = "return loss(setUp(arguments[0]), arguments[1])"
        page = browser.execute_script(script, settings, [prompt, answer])
        tokens = np.array([[*(prompt + answer).encode(), 255]])
        start = len(prompt) - 1
        logits = minilora.forward(adapters, model, tokens[:, :-1])[0]
        chosen = logits[start:] - logits[start:].max(axis=1, keepdims=True)
        log_p = chosen - np.log(np.exp(chosen).sum(axis=1, keepdims=True))
        targets = tokens[0, start + 1 :]
        right = -log_p[np.arange(len(targets)), targets].mean()
        assert page == pytest.approx(right, abs=float(2 * BOUND * np.abs(logits).max())), settings


def blocks():
    """Return 64 numbers at a time: all ties of each code, zeros, many sizes, and outliers."""
    rng = np.random.default_rng(0)
    for code in CODEBOOKS.values():
        yield np.resize(np.append(np.float32(1), code.midpoints), 64)
    yield np.zeros(64, np.float32)
    for exponent in range(-30, 30, 6):
        yield np.float32(rng.standard_normal(64) * 10.0**exponent)


def test_the_codes_are_minilora_s_bit_for_bit(browser, folder):
    """Codes and scales, for the ties, and for the weights of micro."""
    visit(browser, folder)
    whole = np.concatenate(list(blocks()))
    for bits in CODEBOOKS:
        for w in [*blocks(), whole, *(get(DENSE, path)["weight"] for path in PATHS)]:
            parts, dequantized = browser.execute_script(QUANTIZE, w.ravel().tolist(), bits)
            check_code(w, bits, parts, dequantized)


def test_200_random_settings_have_minilora_s_logits_and_answers(browser, folder, fields):
    visit(browser, folder)
    shares = [check(browser, fields, s) for s in random_settings(200, fields)]
    print(
        f"\nlargest error: {max(shares):.3f} of the bound, median {statistics.median(shares):.4f}"
    )


def test_losses_and_whole_answers(browser, folder, fields):
    visit(browser, folder)
    script = "return [...generate(setUp(arguments[0]), arguments[0].prompt)].map((s) => s.token)"
    for settings in random_settings(8, fields, seed=1):
        check_losses(browser, fields, settings)
        _, adapters, model = reference(browser, settings, fields["adapters"])
        prompt = list(settings["prompt"].encode())
        right = list(minilora.generate(adapters, model, prompt, max_tokens=24))
        tokens = browser.execute_script(script, settings)
        assert tokens == (right if len(right) == 24 else [*right, 255]), settings


def test_the_factors_are_those_of_the_run(fields):
    """The rotated factors have the product BA, in order: their answers are those of lesson 0."""
    full = {"step": 200, "alpha": 16.0, "rank": 8, "switches": PATHS}
    adapters = adapters_of(full, fields["adapters"])
    for prompt, answer in fields["questions"][:8]:
        ids = minilora.generate(adapters, MODELS["NF4"], list(prompt.encode()))
        assert bytes(ids).decode() == answer
    for path in PATHS:
        A, B = (fields["adapters"][f"200.{path}.lora_{name}"] for name in "AB")
        np.testing.assert_allclose(A @ A.T, np.eye(8), atol=1e-5)
        right = np.linalg.svd(B @ A, compute_uv=False)[:8]
        np.testing.assert_allclose(np.linalg.norm(B, axis=0), right, atol=1e-5)


# ------------------------------------------------------------------------------------- the page


def errors(browser):
    return [e for e in browser.get_log("browser") if e["level"] in ("SEVERE", "WARNING")]


def test_it_opens_alone_without_errors_and_loads_only_its_files(browser, folder):
    errors(browser), requests(browser)
    visit(browser, folder)
    wait_for_losses(browser)
    assert not errors(browser)
    assert all(url.startswith((folder.as_uri(), "data:")) for url in requests(browser))
    assert (folder / "data.js").stat().st_size < 1.5e6


WRONG = {
    "": "The prompt is empty: write a sentence, or draw a question.",
    "  ": "The prompt is empty: write a sentence, or draw a question.",
    "Ada keeps a 🪁": "The prompt has “🪁”: use English letters, digits and signs, because the "
    "model was trained on nothing else.",
    "a" * 10_000: "The prompt has 10,000 characters: use at most 232, because the model was "
    "trained on texts of 256 with the answer.",
}


def test_wrong_input_gets_a_sentence(browser, folder):
    visit(browser, folder)
    for prompt, sentence in WRONG.items():
        browser.execute_script("byId('x-prompt').value = arguments[0]; update()", prompt)
        problem = browser.find_element("id", "x-problem")
        assert (problem.text, problem.get_attribute("role")) == (sentence, "alert")
        assert not browser.find_elements("css selector", ".x-answer button")
    browser.execute_script("byId('x-prompt').value = 'Ada keeps a'; update()")
    assert browser.find_element("id", "x-problem").text == ""
    wait_for_losses(browser)
    assert not errors(browser)


CHANGE = """
const done = arguments[arguments.length - 1], [id, value] = arguments;
const began = performance.now();
const input = byId(id) || document.querySelector(`input[name=${id}][value="${value}"]`);
if (input.type === "radio") input.checked = true; else input.value = value;
input.dispatchEvent(new Event("input", { bubbles: true }));
requestAnimationFrame(() => setTimeout(() => done(performance.now() - began)));
"""


LONGEST = """
window.longest = 0; // of the browser's "long tasks", those of more than 50 ms
new PerformanceObserver((list) => list.getEntries().forEach((task) => {
  window.longest = Math.max(window.longest, task.duration);
})).observe({ type: "longtask" });
"""


def test_a_change_shows_within_100_ms(browser, folder):
    """The median, because other programs share the processor."""
    visit(browser, folder)
    changes = [("x-step", s) for s in explorer.STEPS] + [("x-bits", b) for b in BITS]
    changes += [("x-alpha", a / 4) for a in range(0, 17, 2)] + [("x-rank", k) for k in range(9)]
    changes += [("x-merged", "merged and rounded")] + [("x-alpha", a / 4) for a in range(0, 17, 2)]
    browser.execute_script(LONGEST)
    times = [browser.execute_async_script(CHANGE, *change) for change in changes]
    wait_for_losses(browser)
    middle, longest = statistics.median(times), browser.execute_script("return longest")
    print(f"\n{len(times)} changes: median {middle:.0f} ms, most {max(times):.0f} ms")
    print(f"the longest piece of work took {longest:.0f} ms (0: less than 50)")
    assert middle < 100 and longest < 500
    assert not errors(browser)


def test_it_works_with_the_keyboard_alone_and_has_labels(browser, folder):
    visit(browser, folder)
    wait_for_losses(browser)
    for field in browser.find_elements("css selector", ".explorer :is(input, select, button)"):
        assert field.accessible_name, field.get_attribute("outerHTML")
    for canvas in browser.find_elements("css selector", ".explorer canvas"):
        if canvas.is_displayed():
            assert canvas.accessible_name and canvas.aria_role in ("img", "image")
    browser.execute_script("byId('x-prompt').focus()")
    seen = []
    for _ in range(60):
        seen.append(browser.switch_to.active_element.id)
        browser.switch_to.active_element.send_keys(Keys.TAB)
    every = "x-prompt", "x-place", "x-alpha", "x-rank", "x-name", "x-layer", "x-head"
    assert {browser.find_element("id", name).id for name in every} <= set(seen)
    assert len(set(seen)) > 40  # the choices, the switches, the tour
    alpha = browser.find_element("id", "x-alpha")
    alpha.send_keys(Keys.ARROW_RIGHT)
    assert browser.find_element("id", "x-alpha-value").text.strip() == "1.25 × 16 = 20"
    wait_for_losses(browser)
    assert "Loss: 4.2290 base" in browser.find_element("css selector", "[role=status]").text


LOSS_AND_ANSWER = """
const on = (path) => arguments[1].some((name) => path.includes(name));
const s = { ...ALL, switches: PATHS.filter(on), alpha: ALPHA, ...arguments[0] };
const params = setUp(s), [prompt, answer] = DATA.questions[0];
const losses = DATA.questions.map((row) => loss(params, row));
// the answer is right if each of its tokens is the likeliest one after those before it
const tokens = [...encode(prompt + answer), 255];
const logits = forward(params, tokens.slice(0, -1));
const likeliest = (t) => softmax(logits.slice(256 * t, 256 * (t + 1))).reduce(
  (best, p, i, all) => (p > all[best] ? i : best), 0);
return [losses.reduce((a, b) => a + b) / losses.length,
  tokens.every((token, t) => t < prompt.length || likeliest(t - 1) === token)];
"""


def test_the_tour_says_what_the_page_shows(browser, folder):
    visit(browser, folder)

    def result(names=("_proj",), **settings):
        return browser.execute_script(LOSS_AND_ANSWER, settings, names)

    def loss(*names, **settings):
        return result(names or ("_proj",), **settings)[0]

    assert round(loss("self_attn"), 2) == 0.83 and round(loss("mlp"), 2) == 1.41
    without = {}
    names = [path.rpartition(".")[2] for path in PATHS[:7]]
    for name in names:
        without[name] = loss(*(other for other in names if other != name))
    assert set(sorted(without, key=without.get)[-2:]) == {"q_proj", "k_proj"}
    assert round(loss(step=10), 1) == 2.3 and round(loss(step=0), 1) == 4.2
    assert round(loss(step=10, merged=True), 1) == 4.1
    assert 1.5 * loss() < loss(merged=True) < 4 * loss()
    assert loss() < loss(bits="float32") < loss(bits="int4") < 0.2 < 4 < loss(bits="2 bits")
    assert loss() < min(loss(alpha=12.0), loss(alpha=24.0))
    right = {k: result(rank=k)[1] for k in range(9)}
    assert not right[1] and right[4] and loss(rank=4) < 0.06
    assert round(loss(), 2) == 0.03 and not result(alpha=8.0)[1] and not result(alpha=64.0)[1]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_follows_the_colours(browser, folder, scheme):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    try:
        visit(browser, folder)
        wait_for_losses(browser)
        size = "return [innerWidth, document.documentElement.scrollWidth]"
        assert browser.execute_script(size) == [390, 390]
        canvas = "return getComputedStyle(document.getElementById('x-status')).backgroundColor"
        assert (browser.execute_script(canvas) == "rgb(255, 255, 255)") == (scheme == "light")
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_without_motion_an_answer_appears_at_once(browser, folder, motion):
    features = [{"name": "prefers-reduced-motion", "value": motion}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    visit(browser, folder)
    wait_for_losses(browser)
    browser.execute_script("""const show = showAnswer; window.calls = 0;
        showAnswer = (...all) => { window.calls++; show(...all); };
        applySettings({ ...ALL, step: 100 });""")
    wait_for_losses(browser)
    calls = browser.execute_script("return window.calls")
    assert calls == 2 if motion == "reduce" else calls > 10
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_without_javascript_there_is_a_still_picture(browser, folder):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        visit(browser, folder)
        picture = browser.find_element("css selector", "img[alt]")
        end = time.monotonic() + 5
        while not picture.size["width"] > 100:
            assert time.monotonic() < end
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
