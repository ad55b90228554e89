"""What comes out: errors of codes, merged models, judged answers, other ways to adapt."""

import numpy as np

from lessons.book.drawings.elements import *
from minilora import nf4
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
    "The absmax of eight blocks. Left: all are alike, and a step between two levels is much "
    "smaller than each of them. Right: one block is larger, so a step is wider than all others.",
)
def one_large_absmax(ax):
    small = np.array([1.0, 0.8, 1.2, 0.9, 1.1, 0.7, 1.05, 0.95])
    for x, values, name in (
        (8, small, "blocks of one size"),
        (43, np.append(small[:7], 20.0), "one block is larger"),
    ):
        plot = plot_axes(ax, x, 5.5, 25, 19.5, xlabel="block", ylabel="absmax")
        for level in values.max() * np.arange(17) / 16:  # the same 16 steps, up to the largest
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
        for row in range(rows):  # from below; the second from above is row i of x, and row j of W
            color = "#fbdcc4" if row == rows - 2 else fill
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
    3.1,
    "A reliability diagram: answers grouped by the model's confidence. Where the share of right "
    "answers is below the confidence, the model is too sure. The gaps, weighted, are the ECE.",
)
def reliability(ax):
    confidence = np.array([0.15, 0.3, 0.5, 0.7, 0.9])
    accuracy, rows = np.array([0.2, 0.28, 0.41, 0.52, 0.68]), np.array([20, 30, 40, 50, 60])
    labels = {"xlabel": "confidence", "ylabel": "share of right answers"}
    plot = plot_axes(ax, 7, 5, 25, 24, xlim=(0, 1), ylim=(0, 1), **labels)
    plot.plot([0, 1], [0, 1], ":", color=INK, lw=1)
    plot.bar(confidence, accuracy, 0.14, color="#9ecae9", edgecolor=BLUE)
    plot.vlines(confidence, accuracy, confidence, color=ORANGE, lw=3)
    ece = np.sum(rows * np.abs(accuracy - confidence)) / rows.sum()
    lines = (
        (24, "on the dotted line: calibrated", INK),
        (20.5, "below it: the model is too sure", ORANGE),
        (17, "above it: not sure enough", BLUE),
        (11.5, "ECE = Σ (rows in the bin / all rows) · |gap|", INK),
        (8, f"here: {ece:.3f}", ORANGE),
    )  # fmt: skip
    for y, words, color in lines:
        text(ax, 37, y, words, 9.5, color, ha="left")
    text(ax, 37, 3.4, "an example, made up", 8.5, GREY, ha="left")


@drawing(
    3.7,
    "A decision tree for a run that goes wrong: is the training loss finite, does it fall, "
    "does the held-out loss fall as well, and does the text that the model generates agree.",
)
def symptoms(ax):
    questions = (
        ("Is the training loss finite?", "rate too high, no warm-up,\n16-bit overflow"),
        (
            "Does the training loss fall?",
            "rate too low, B and A both zero,\nadapters not in the gradient",
        ),
        ("Does the held-out loss fall?", "too few rows, too many steps;\nor another distribution"),
        (
            "Are generated answers right?",
            "other template or base than in\ntraining; prompt in the loss",
        ),
    )
    for i, (question, cause) in enumerate(questions):
        y = 30.5 - 8.1 * i
        box(ax, 1.5, y, 27, 4.4, question, "frozen")
        arrow(ax, (28.5, y + 2.2), (38, y + 2.2), "no", PURPLE)
        box(ax, 38, y - 0.3, 30, 5, cause, "other")
        if i < 3:
            arrow(ax, (15, y), (15, y - 3.7), "yes", GREEN, (2.2, 0))
    arrow(ax, (15, 6.2), (15, 3.6), "yes", GREEN, (2.2, 0))
    text(ax, 15, 2.2, "done: report the test rows once", 9, GREEN)
