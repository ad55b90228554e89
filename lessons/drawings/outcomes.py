"""What comes out: errors of codes, merged models, judged answers, other ways to adapt."""

import numpy as np
from elements import (
    BLUE,
    GREEN,
    GREY,
    INK,
    KINDS,
    ORANGE,
    PURPLE,
    SMOLLM2,
    arrow,
    bits_per_weight,
    box,
    drawing,
    matrix,
    path,
    plot_axes,
    text,
    title,
)
from matplotlib.patches import Rectangle

from minilora import nf4
from minilora.config import ModelConfig
from minilora.formats.hf_folder import projection_shapes, shapes


@drawing(
    3.3,
    "The distance of a weight to the nearest value of a code, over the weight. NF4 has small gaps "
    "near zero and wider ones outside, but every distance is below 0.2. With equally filled bins "
    "the largest distances are above 0.2.",
)
def gaps_of_codes(ax):
    rng = np.random.default_rng(0)
    x, _ = nf4.normalize(rng.standard_normal(2**16).astype(np.float32), 64)
    equal = np.quantile(x, (np.arange(16) + 0.5) / 16)
    for left, values, name in ((7, nf4.NF4, "NF4"), (41, equal, "equally filled bins")):
        plot = plot_axes(ax, left, 5.5, 27, 22.5, xlabel="w / absmax", ylim=(0, 0.42))
        middles = (values[1:] + values[:-1]) / 2  # the distance is linear between these points
        line = np.sort(np.concatenate([values, middles, [-1, 1]]))
        distance = np.abs(line[:, None] - values).min(axis=1)
        plot.fill_between(line, distance, color="#f0b37e", lw=0)
        density, edges = np.histogram(x, 60, (-1, 1), density=True)
        middle = (edges[1:] + edges[:-1]) / 2
        plot.plot(middle, 0.35 * density / density.max(), color=BLUE, lw=1.4)
        plot.vlines(values, 0, 0.03, color=INK, lw=1)
        plot.set(yticks=[0, 0.2, 0.4])
        plot.patch.set_visible(False)  # the words are behind it
        text(ax, left + 13.5, 30.5, name, 10, weight="bold")
    text(ax, 20.5, 27, "blue: how many weights", 8.5, BLUE)
    text(ax, 54.5, 27, "orange: distance to the nearest value", 8.5, ORANGE)


@drawing(
    3.0,
    "The absmax of eight blocks. Left: all are alike, and the steps of the 8-bit map are finer "
    "than their differences. Right: one block is larger, so the steps are wider than all others.",
)
def one_large_absmax(ax):
    small = np.array([1.0, 0.8, 1.2, 0.9, 1.1, 0.7, 1.05, 0.95])
    for x, values, step, name in (
        (8, small, 0.2, "blocks of one size"),
        (43, np.append(small[:7], 9.0), 2.6, "one block is larger"),
    ):
        plot = plot_axes(ax, x, 5.5, 25, 19.5, xlabel="block", ylabel="absmax")
        for level in np.arange(0, 1.12 * values.max(), step):
            plot.axhline(level, color="#f0b37e", lw=0.9, zorder=0)
        plot.bar(range(8), values, color="#d6e9f5", edgecolor=BLUE, width=0.7)
        plot.set(xticks=[], ylim=(0, 1.15 * values.max()))
        text(ax, x + 12.5, 27.6, name, 10, weight="bold")
    text(ax, 35, 1.6, "orange: what 8 bits can store (fewer levels than in reality)", 8.5, ORANGE)


@drawing(
    3.0,
    "A product in eight bits: each row of x and each row of W is divided by its own largest "
    "magnitude. An entry of y is a sum of products of whole numbers, times two scales.",
)
def rows_and_scales(ax):
    for x, y, rows, name, kind in (
        (7, 10, 3, "codes of x\n(tokens, in)", "data"),
        (30, 10, 4, "codes of W\n(out, in)", "frozen"),
    ):
        fill, edge, _ = KINDS[kind]
        for row in range(rows):
            color = "#fbdcc4" if row == 1 else fill
            ax.add_patch(Rectangle((x, y + 3 * row), 12, 2.5, fc=color, ec=edge, lw=1))
            ax.add_patch(Rectangle((x - 3.4, y + 3 * row), 2.4, 2.5, fc="white", ec=ORANGE, lw=1))
        text(ax, x + 6, 25, name, 9)
        text(ax, x - 2.2, 7.8, "absmax", 8, ORANGE)
    text(ax, 22.6, 15, "·", 16)
    text(ax, 46.5, 15, "=", 14)
    for row in range(3):
        for column in range(4):
            fill = "#fbdcc4" if (row, column) == (1, 1) else "white"
            corner = (51 + 3.4 * column, 10 + 3 * row)
            ax.add_patch(Rectangle(corner, 3.4, 3, fc=fill, ec=GREEN, ls="--", lw=1))
    text(ax, 57.8, 25, "y\n(tokens, out)", 9)
    text(ax, 35, 3, "yᵢⱼ = absmaxᵢ · absmaxⱼ / 127² · Σ qₓ·q_w       each q is −127 … 127", 9)


@drawing(
    3.2,
    "Three ways to merge, as arrows. The trained model is Ŵ plus ΔW. From the original W the same "
    "arrow ends elsewhere, W − Ŵ away. In four bits again, the end moves to the nearest point of a "
    "grid, which can be Ŵ itself.",
)
def three_merges(ax):
    for i in range(5):
        for j in range(4):
            ax.plot(6 + 8 * i, 5 + 7 * j, "o", color=BLUE, ms=5)
    w_hat, w, d = np.array([14, 12]), np.array([16.4, 14.8]), np.array([3.0, -1.4])
    ax.plot(*w, "s", color=INK, ms=6)
    arrow(ax, w_hat, w_hat + d, color=ORANGE)
    arrow(ax, w, w + d, color=ORANGE, style="--")
    arrow(ax, w_hat + d, w_hat + np.array([0.3, 0.1]), color=PURPLE, curve=-0.5)
    text(ax, 11.3, 12.6, "Ŵ", 10, BLUE)
    text(ax, 15, 16.8, "W", 10)
    text(ax, 20.4, 9.4, "Ŵ + ΔW", 9, ORANGE)
    text(ax, 22.6, 15.4, "W + ΔW", 9, ORANGE)
    lines = (
        (25.5, "blue: what four bits can store", BLUE),
        (20, "1.  Ŵ + ΔW, dense: the trained model", ORANGE),
        (
            14.5,
            "2.  four bits again: the nearest blue point,\n     here Ŵ: the update is lost",
            PURPLE,
        ),
        (8, "3.  W + ΔW: off by W − Ŵ,\n     which can be longer than ΔW", INK),
    )
    for y, words, color in lines:
        text(ax, 43, y, words, 9, color, ha="left")


@drawing(
    2.9,
    "Two tasks. Added: each adapter was trained on the bare base and meets the other one for the "
    "first time. Stacked: the second was trained with the first in place, so only the first is "
    "disturbed.",
)
def added_and_stacked(ax):
    title(ax, 1.5, 26, "added")
    title(ax, 38, 26, "stacked")
    for x, second in ((1.5, "ΔW₂, trained on W"), (38, "ΔW₂, trained on W + ΔW₁")):
        box(ax, x, 5.5, 17, 4.5, "W", "frozen", 11)
        box(ax, x, 11, 17, 4.5, "ΔW₁, trained on W", "trained", 8.5)
        box(ax, x, 16.5, 17, 4.5, second, "trained", 8.5)
    rows = (
        (20, 18.7, "task 2: disturbed by ΔW₁", PURPLE),
        (20, 13.2, "task 1: disturbed by ΔW₂", PURPLE),
        (56.5, 18.7, "task 2: works", GREEN), (56.5, 13.2, "task 1: disturbed", PURPLE),
    )  # fmt: skip
    for x, y, words, color in rows:
        text(ax, x, y, words.replace("disturbed by", "disturbed\nby"), 8.5, color, ha="left")
    text(ax, 35, 2.2, "y = Wx + ΔW₁x + ΔW₂x in both cases", 9, GREY)


@drawing(
    3.0,
    "The share of a square matrix that an adapter has, 2r over the width, for r = 4, 8 and 64: "
    "a third at width 48 and r = 8, less than 0.1 per cent at width 12,288 and r = 4.",
)
def adapter_share(ax):
    plot = plot_axes(ax, 9, 5.5, 40, 22, xlabel="width of a square matrix",
                     ylabel="numbers of A and B / numbers of W")  # fmt: skip
    width = np.array([48, 128, 512, 4096, 12288])
    for r, color, style, marker in (
        (64, GREY, ":", "s"),
        (8, BLUE, "-", "o"),
        (4, ORANGE, "--", "^"),
    ):
        plot.plot(width, 2 * r / width, style, color=color, marker=marker, ms=4, lw=1.6)
        plot.text(14500, 2 * r / 12288, f"r = {r}", size=9, color=color, va="center")
    plot.axhline(1, color=INK, lw=0.8)
    plot.text(500, 1.15, "as many as W", size=8.5)
    plot.set(xscale="log", yscale="log", xlim=(35, 14000))
    plot.minorticks_off()
    plot.set_xticks(width, ["48", "128", "512", "4,096", "12,288"])
    plot.set_yticks([0.001, 0.01, 0.1, 1], ["0.1 %", "1 %", "10 %", "100 %"])
    text(ax, 56, 21, "micro 48\ntiny 128\nGPT-3 12,288", 9, GREY, ha="left")


@drawing(
    3.0,
    "The seven matrices of a layer of LLaMA-65B, drawn to scale with their numbers of weights. "
    "Eighty layers, the embedding and the head make 65.3 billion.",
)
def llama_65b(ax):
    sizes = {"hidden_size": 8192, "intermediate_size": 22016, "num_hidden_layers": 80}
    heads = {"num_attention_heads": 64, "num_key_value_heads": 64, "head_dim": 128}
    config = ModelConfig(**sizes, **heads, vocab_size=32000, tie_word_embeddings=False)
    x, scale, layer = 2.0, 5.8 / 8192, 0
    for name, (out, width) in projection_shapes(config).items():
        matrix(
            ax, x, 10, width * scale, out * scale, f"{out * width / 1e6:.0f} M", "frozen", size=7.5
        )
        text(ax, x + width * scale / 2, 8.3, name.removesuffix("_proj"), 9)
        x, layer = x + width * scale + 2, layer + out * width
    total = sum(int(np.prod(shape)) for shape in shapes(config).values())
    text(ax, 2, 28.2, "one layer of LLaMA-65B: out × in, to scale", 10, ha="left", weight="bold")
    words = f"{layer / 1e6:.0f} million per layer; with the embedding and the head, 80 layers have "
    words += f"{total / 1e9:.1f} billion"
    text(ax, 2, 4, words, 9, BLUE, ha="left")


@drawing(
    3.2,
    "Four cases of training loss and held-out loss, low or high. Both low: it fits. Training low "
    "and held-out high: overfitting. Both high: underfitting. Training high and held-out low: look "
    "for a mistake.",
)
def two_losses(ax):
    cases = (
        (0, 1, "fits", GREEN), (1, 1, "overfits:\nmore rows", PURPLE),
        (0, 0, "dropout, or faulty\ntraining rows", GREY),
        (1, 0, "underfits: more parameters,\nmore steps, a larger rate", PURPLE),
    )  # fmt: skip
    for column, row, words, color in cases:
        x, y = 16 + 27 * column, 4.5 + 10.5 * row
        ax.add_patch(Rectangle((x, y), 25.5, 9.5, fc="#f6f6f6", ec=GREY, lw=1))
        for i, high in enumerate((1 - row, column)):
            height = 7 if high else 1.6
            fill = ("#fbdcc4", "#d6e9f5")[i]
            ax.add_patch(Rectangle((x + 1.5 + 2.6 * i, y + 1), 2, height, fc=fill, ec=INK, lw=0.8))
        text(ax, x + 7.5, y + 4.7, words, 9, color, ha="left")
    for x, words in ((28.7, "held-out loss low"), (55.7, "held-out loss high")):
        text(ax, x, 27, words, 9.5, weight="bold")
    for y, words in ((20, "training\nloss low"), (9.5, "training\nloss high")):
        text(ax, 8, y, words, 9.5, weight="bold")
    text(ax, 35, 1.8, "orange: training loss     blue: held-out loss", 8.5, GREY)


@drawing(
    2.9,
    "The same rows with right answers and with the answers shuffled among the rows. With shuffled "
    "answers the loss must stay at that of a guess. If it falls, the answer leaks into the prompt.",
)
def label_check(ax):
    prompts = (
        "Ada keeps a kite … where?",
        "Ben keeps a bell … where?",
        "Cal keeps a coin … where?",
    )
    right, shuffled = ("barn", "dock", "loft"), ("loft", "barn", "dock")
    for x, answers, name in ((1.5, right, "right labels"), (37, shuffled, "shuffled labels")):
        title(ax, x, 26.3, name)
        for i, (prompt, answer) in enumerate(zip(prompts, answers)):
            y = 19.5 - 4.6 * i
            box(ax, x, y, 19.5, 3.8, prompt, "data", 8)
            box(ax, x + 21.5, y, 8, 3.8, answer, "trained" if x < 30 else "other", 8.5)
            arrow(ax, (x + 19.5, y + 1.9), (x + 21.5, y + 1.9))
    text(ax, 16, 6.2, "the loss must fall below a guess's", 9, GREEN)
    text(ax, 52, 6.2, "the loss must stay at a guess's", 9, PURPLE)
    text(
        ax,
        35,
        2.4,
        "both fail: labels or preprocessing are wrong, or the model is too small",
        9,
        GREY,
    )


@drawing(
    2.8,
    "Probabilities of four tokens from one list of logits at temperatures 0.5, 1 and 2. The "
    "likeliest token stays the likeliest; its probability falls as the temperature rises.",
)
def temperature(ax):
    logits = np.array([3.0, 1.8, 0.6, 0.0])
    for i, tau in enumerate((0.5, 1.0, 2.0)):
        plot = plot_axes(ax, 7 + 22 * i, 5.5, 17, 16, ylim=(0, 1))
        p = np.exp(logits / tau) / np.exp(logits / tau).sum()
        plot.bar(range(4), p, color=[ORANGE] + ["#9ecae9"] * 3, edgecolor=INK, linewidth=0.6)
        plot.text(0, p[0] + 0.03, f"{p[0]:.2f}", size=9, ha="center")
        plot.set_xticks(range(4), [f"{z:g}" for z in logits])
        name = ("τ = 0.5: surer", "τ = 1: as trained", "τ = 2: less sure")[i]
        text(ax, 15.5 + 22 * i, 25.3, name, 9.5, weight="bold")
    text(ax, 35, 1.6, "logit z of each token; p = softmax(z / τ)", 9, GREY)


@drawing(
    2.9,
    "Where virtual tokens are. Prompt tuning puts trained vectors before the embeddings, once. "
    "Prefix tuning puts trained keys and values before those of the text in every layer.",
)
def virtual_tokens(ax):
    for x, name in ((1.5, "prompt tuning"), (37, "prefix tuning")):
        title(ax, x, 26.5, name)
        for row, words in enumerate(("embeddings", "layer 0", "layer 1", "layer 2")):
            y = 5 + 5 * row
            text(ax, x, y + 1.7, words, 8.5, GREY, ha="left")
            for i in range(7):
                virtual = i < 2
                if virtual and name == "prefix tuning" and row == 0:
                    continue
                trained = virtual and (row == 0 or name == "prefix tuning")
                kind = "trained" if trained else "data"
                words = ("P" if row == 0 else "K V") if trained else ""
                box(ax, x + 10 + 3.2 * i, y, 3, 3.4, words, kind, 6.5)
    text(ax, 17, 2, "trained once, below all layers", 8.5, ORANGE)
    text(ax, 53, 2, "trained in every layer", 8.5, ORANGE)


@drawing(
    2.8,
    "Attention weights of a token on four letters. With a prefix, a share λ goes to the prefix, "
    "and the four weights shrink by the same factor 1 − λ. With LoRA on q, their ratios change.",
)
def prefix_attention(ax):
    plain = np.array([0.4, 0.1, 0.3, 0.2])
    ways = (
        ("without", 0.0, plain),
        ("with a prefix, λ = 0.4", 0.4, plain * 0.6),
        ("LoRA on q", 0.0, np.array([0.15, 0.45, 0.1, 0.3])),
    )
    for row, (name, share, weights) in enumerate(ways):
        y, left = 19.5 - 6.2 * row, 22.0
        text(ax, 1.5, y + 2, name, 9.5, ha="left")
        parts = [(share, "#fbdcc4", ORANGE, "prefix")]
        parts += [(w, "#d6e9f5", BLUE, "Ada·"[i]) for i, w in enumerate(weights)]
        for size, fill, edge, letter in parts:
            if size:
                ax.add_patch(Rectangle((left, y), 46 * size, 4, fc=fill, ec=edge, lw=1.2))
                text(ax, left + 23 * size, y + 2, letter, 9)
            left += 46 * size
    text(
        ax,
        35,
        3.3,
        "a prefix scales all weights on the text by 1 − λ, and adds values of its own",
        9,
        GREY,
    )


@drawing(
    2.9,
    "The parts of SmolLM2 by number of parameters and by bytes in memory: projections in 4.13 "
    "bits, the embedding in 9 bits with its scales, and LoRA of rank 8 in 32 bits.",
)
def smollm2_bytes(ax):
    weights = SMOLLM2.num_hidden_layers * sum(o * i for o, i in projection_shapes(SMOLLM2).values())
    embedding = SMOLLM2.vocab_size * SMOLLM2.hidden_size
    adapters = SMOLLM2.num_hidden_layers * sum(
        8 * (o + i) for o, i in projection_shapes(SMOLLM2).values()
    )
    parts = (
        ("projections", weights, bits_per_weight(), "#d6e9f5"),
        ("embedding", embedding, 8 + 32 / 32, "#9ecae9"),  # a float32 scale per 32 weights
        ("LoRA, r = 8", adapters, 32, "#fbdcc4"),
    )
    for y, words, unit in ((19, "parameters (million)", 0), (9.5, "megabytes in memory", 1)):
        text(ax, 2, y + 5.6, words, 9.5, ha="left", weight="bold")
        numbers = [n * (bits / 8 if unit else 1) / 1e6 for _, n, bits, _ in parts]
        x, scale = 2.0, 64 / sum(numbers)
        for number, (_, _, _, fill) in zip(numbers, parts):
            ax.add_patch(Rectangle((x, y), number * scale, 4, fc=fill, ec=INK, lw=0.8))
            narrow = number * scale < 3
            middle = x + (number * scale / 2 if not narrow else number * scale + 1.8)
            text(ax, middle, y + 2, f"{number:.1f}", 8.5)
            x += number * scale
    for i, (name, _, bits, fill) in enumerate(parts):
        ax.add_patch(Rectangle((2 + 22 * i, 4), 1.8, 1.8, fc=fill, ec=INK, lw=0.8))
        text(ax, 4.8 + 22 * i, 4.9, f"{name}, {bits:.3g} bits", 8.5, ha="left")


@drawing(
    3.0,
    "UᵀWV for four directions on each side. In W's own leading directions it holds most of W, in "
    "random directions only a small part, near the chance level.",
)
def w_in_directions(ax):
    rng = np.random.default_rng(2)
    u, v = (np.linalg.qr(rng.standard_normal((24, 24)))[0] for _ in range(2))
    w = u * (4.0 * 0.8 ** np.arange(24)) @ v.T
    cases = (
        ("directions of W", u[:, :4], v[:, :4]),
        ("random directions", *(np.linalg.qr(rng.standard_normal((24, 4)))[0] for _ in range(2))),
    )
    for i, (name, left, right) in enumerate(cases):
        inside = left.T @ w @ right
        plot = plot_axes(ax, 6 + 24 * i, 5, 16, 16)
        plot.imshow(np.abs(inside), cmap="Oranges", vmin=0, vmax=4)
        plot.axis("off")
        norm = np.linalg.norm(inside)
        text(ax, 14 + 24 * i, 26.4, name, 9.5, weight="bold")
        text(ax, 14 + 24 * i, 23.2, f"‖UᵀWV‖ = {norm:.1f}", 9, ORANGE)
    chance = np.linalg.norm(w) * 4 / 24
    lines = ("W: 24 × 24, r = 4", f"‖W‖ = {np.linalg.norm(w):.1f}",
             f"chance: ‖W‖·r/√(mn) = {chance:.1f}")  # fmt: skip
    for y, words in zip((17, 13.5, 10), lines):
        text(ax, 51, y, words, 8.5, ha="left")
    text(ax, 30, 1.8, "an example, made up", 8.5, GREY)


@drawing(
    2.8,
    "Two shifts. Small: a question about a sentence that the base could have written. Large: the "
    "same notes with the letters permuted, so all words are new.",
)
def two_shifts(ax):
    box(ax, 24, 21, 22, 4.4, "base: notes in English words", "frozen", 8.5)
    letters = "abcdefghijklmnopqrstuvwxyz"
    other = "".join(np.random.default_rng(5).permutation(list(letters)))  # as in lesson 14
    permuted = str.maketrans(letters + letters.upper(), other + other.upper())
    sentence = "Ada keeps a pink kite in the barn."
    sides = (
        (1.5, "small shift", f"{sentence}\nWho, what, where?", "known words, a new task"),
        (37, "large shift", sentence.translate(permuted), "every letter means another one"),
    )  # fmt: skip
    for x, name, words, meaning in sides:
        arrow(ax, (35, 21), (x + 15.5, 18.4))
        text(ax, x + 15.5, 7.6, name, 10, weight="bold")
        box(ax, x, 11.5, 31, 5.8, words, "data", 8.5)
        text(ax, x + 15.5, 4.4, meaning, 9, GREY)


@drawing(
    2.9,
    "Rows with a quarter of wrong answers. Of 64 rows, the wrong ones can be memorized one by one. "
    "Of 4,000 rows, the rule that most rows share is cheaper than all exceptions.",
)
def noisy_rows(ax):
    rng = np.random.default_rng(0)
    for x, columns, lines, name in (
        (2, 8, 8, "64 rows, 16 wrong"),
        (26, 40, 16, "4,000 rows, 1,000 wrong (a part)"),
    ):
        side = 14 / lines
        wrong = rng.permutation(columns * lines) < columns * lines // 4
        for i in range(columns * lines):
            corner = (x + side * (i % columns), 8 + side * (i // columns))
            fill = PURPLE if wrong[i] else "#d6e9f5"
            ax.add_patch(Rectangle(corner, 0.85 * side, 0.85 * side, fc=fill, lw=0))
        text(ax, x, 25, name, 10, ha="left", weight="bold")
    text(ax, 2, 4.8, "200 steps of 16 rows:\neach row seen 50 times", 8.5, GREY, ha="left")
    text(
        ax,
        26,
        4.8,
        "each row seen at most once",
        8.5,
        GREY,
        ha="left",
    )
    text(ax, 62.5, 15, "purple:\nwrong", 8.5, PURPLE, ha="left")


@drawing(
    3.0,
    "PEFT's model is one object that changes with each call. minilora's model is two trees, and "
    "each function returns new trees.",
)
def object_or_trees(ax):
    title(ax, 1.5, 27, "PEFT: one object that changes")
    title(ax, 38, 27, "minilora: new trees from trees")
    left = (
        "from_pretrained(4 bits)",
        "get_peft_model",
        "loss.backward(); step()",
        "merge_and_unload",
    )
    right = ("load, quantize → base", "get_peft_model → adapters", "train → new adapters",
             "merge → dense base")  # fmt: skip
    for i, (a, b) in enumerate(zip(left, right)):
        y = 20.5 - 5 * i
        box(ax, 12, y, 19, 3.6, a, "data", 8)
        arrow(ax, (12, y + 1.8), (9.4, y + 1.8))
        box(ax, 38, y, 28, 3.6, b, "trained" if i in (1, 2) else "frozen", 8)
        if i:
            arrow(ax, (52, y + 5), (52, y + 3.6))
    box(ax, 1.5, 5.5, 7.8, 18.6, "model", "frozen")
    text(ax, 20, 2.4, "frozen: requires_grad = False", 8.5, GREY)
    text(ax, 52, 2.4, "frozen: not the first argument of the loss", 8.5, GREY)


@drawing(
    2.9,
    "The statistics of batch normalization in training and in validation. The base's in training "
    "work with both. The batch's in training with the base's in validation is the trap.",
)
def which_statistics(ax):
    for x, words in ((33.5, "validation: the base's"), (57, "validation: new ones")):
        text(ax, x, 25.5, words, 9.5, weight="bold")
    rows = (
        (15.5, "training:\nthe base's", ("works", GREEN), ("works", GREEN)),
        (
            5,
            "training:\nthe batch's",
            ("the trap: looks like overfitting", PURPLE),
            ("works", GREEN),
        ),
    )
    for y, name, *cells in rows:
        text(ax, 10, y + 4, name, 9.5, weight="bold")
        for x, (words, color) in zip((22, 45.5), cells):
            ax.add_patch(Rectangle((x, y), 23, 8.5, fc="#f6f6f6", ec=GREY, lw=1))
            text(ax, x + 11.5, y + 4.2, words, 9, color)
    text(
        ax,
        35,
        2,
        "new: mean and variance of the training pictures under the adapted weights",
        8.5,
        GREY,
    )


@drawing(
    2.8,
    "What minilora writes for PEFT: a folder with a configuration and the factors. PEFT reads it, "
    "puts it on its own copy of the base, and computes the same logits.",
)
def adapter_for_peft(ax):
    box(ax, 1.5, 9, 14, 9, "minilora\nadapters,\nbase", "trained")
    ax.add_patch(Rectangle((24, 5), 22, 17, fc="white", ec=GREY, lw=1.2))
    text(ax, 35, 23.8, "a folder", 9, GREY)
    box(ax, 25.5, 15, 19, 5, "adapter_config.json\nr, lora_alpha, targets", "data", 8)
    box(ax, 25.5, 7, 19, 5, "adapter_model.safetensors\nlora_A, lora_B per path", "trained", 8)
    box(ax, 54.5, 9, 14, 9, "PEFT\non its own copy\nof the base", "frozen")
    arrow(ax, (15.5, 13.5), (24, 13.5), "save", GREY)
    arrow(ax, (46, 13.5), (54.5, 13.5), "load", GREY)
    path(ax, (8.5, 9), (8.5, 2.6), (61.5, 2.6), (61.5, 9), color=GREEN)
    text(ax, 35, 3.8, "the same logits", 9, GREEN)
