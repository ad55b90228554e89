"""The course: its map, the steps of a run, what to look at when it goes wrong."""

import re
from pathlib import Path
from textwrap import wrap

import numpy as np
import toolcalls
from elements import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    arrow,
    box,
    drawing,
    path,
    plot_axes,
    text,
)

LESSONS = Path(__file__).parents[1]


PARTS = {
    "The idea": (0, 1),
    "LoRA": (2, 4),
    "Few bits": (5, 7),
    "Training": (8, 11),
    "Use": (12, 18),
    "Since 2023": (19, 99),
}
PER_ROW = 5


def lesson_rows():
    """Return (part, [(number, file name, needed numbers), …]) for each row of the map."""
    lessons = {part: [] for part in PARTS}
    for file in sorted(LESSONS.glob("[0-9]*.py")):
        number, _, name = file.stem.partition("_")
        part = next(p for p, (first, last) in PARTS.items() if first <= int(number[:2]) <= last)
        lessons[part].append((number[0].strip("0") + number[1:], name, needed_lessons(file)))
    return [
        (part * (start == 0), found[start : start + PER_ROW])
        for part, found in lessons.items()
        for start in range(0, len(found), PER_ROW)
    ]


def needed_lessons(file):
    """Return the numbers of the lessons that a lesson names after "You need:"."""
    text = file.read_text(encoding="utf-8").replace("\n# ", " ")
    found = re.search(r"You need:\**(.*?)(\.|\n)", text)
    lists = re.findall(r"lessons? ((?:\d+[a-z]?(?:, | and )?)+)", found[1]) if found else []
    return [number for words in lists for number in re.findall(r"\d+[a-z]?", words)]


ROWS = lesson_rows()


@drawing(
    0.78 * len(ROWS) + 0.1,
    "A map of the lessons in six parts: the idea, LoRA, few bits, training, use, and findings "
    "since 2023. Below each lesson are the numbers of the lessons that it needs.",
)
def lesson_map(ax):
    for row, (part, lessons) in enumerate(ROWS):
        y = 7.8 * (len(ROWS) - row) - 5.7
        text(ax, 1, y + 2.5, part, 10, ha="left", weight="bold")
        for i, (number, name, needs) in enumerate(lessons):
            box(ax, 10.5 + 11.9 * i, y, 11.2, 5, f"{number}  {short_title(name)}", "frozen", 8)
            words = "needs " + ", ".join(needs) if needs else "needs no other"
            text(ax, 16.1 + 11.9 * i, y - 1, words, 8, GREY)


def short_title(name):
    """Return a lesson's name in one line, or in two of about the same length."""
    words = [ACRONYMS.get(word, word) for word in name.removeprefix("the_").split("_")]
    if len(words) == 1 or len(" ".join(words)) < 13:
        return " ".join(words)
    cuts = [(" ".join(words[:n]), " ".join(words[n:])) for n in range(1, len(words))]
    return "\n".join(min(cuts, key=lambda lines: max(len(lines[0]) + 3, len(lines[1]))))


ACRONYMS = {"llm": "LLM", "lora": "LoRA", "qlora": "QLoRA", "peft": "PEFT", "llama": "Llama"}


@drawing(
    2.7,
    "Three sets of rows. Training rows give gradients. Validation rows choose settings and "
    "when to stop. Test rows give one number at the end.",
)
def data_splits(ax):
    sets = (
        (1.5, 33, "training rows", "gradients: every step", "trained"),
        (36, 15, "validation rows", "choose: rate, rank,\nwhen to stop", "temporary"),
        (52.5, 15.5, "test rows", "report once,\nat the end", "frozen"),
    )
    for x, width, name, use, kind in sets:
        box(ax, x, 18, width, 5, name, kind)
        arrow(ax, (x + width / 2, 18), (x + width / 2, 14.2))
        text(ax, x + width / 2, 11.8, use)
    text(ax, 1.5, 25.2, "all rows, without duplicates across the sets", ha="left", weight="bold")
    path(ax, (43.5, 9.6), (43.5, 7), (18, 7), (18, 10.2), color=GREY)
    text(ax, 31, 5.4, "again with other settings", 9, GREY)
    text(ax, 35, 2, "a set that has chosen something is no longer a test", 9, PURPLE)


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
    2.5,
    "The steps of a run: load a base, quantize it, create adapters, train them, then save "
    "them alone or merge them into a dense model.",
)
def run_steps(ax):
    steps = (
        ("load", "base\nin 16 or 32 bits", "frozen"), ("quantize", "base\nin 4 bits", "frozen"),
        ("get_peft_model", "adapters\nA random, B = 0", "trained"),
        ("train", "adapters\nlearned", "trained"),
    )  # fmt: skip
    for i, (name, words, kind) in enumerate(steps):
        x = 1.5 + 13.6 * i
        box(ax, x, 10.5, 11, 5.6, words, kind, 8.5)
        text(ax, x + 5.5, 18, f"{name}", 9.5, family="monospace")
        if i < 3:
            arrow(ax, (x + 11, 13.3), (x + 13.6, 13.3))
    for y, name, words, kind in (
        (17, "save_adapter", "adapters: small", "trained"),
        (3.6, "merge", "dense model", "frozen"),
    ):
        box(ax, 57.5, y, 11.5, 4.6, words, kind, 8.5)
        path(ax, (53.3, 13.3), (55.2, 13.3), (55.2, y + 2.3), (57.5, y + 2.3))
        text(ax, 63.2, y - 1.3 if y > 10 else y + 5.8, name, 9.5, family="monospace")
    text(ax, 1.5, 5.4, "the base's arrays are never written to", 9, BLUE, ha="left")


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


@drawing(
    2.5,
    "A request in English goes through the model and becomes one line of JSON, which is "
    "compared with the right line, character by character.",
)
def tool_call(ax):
    request, answer = (m["content"] for m in toolcalls.rows("test")[0]["messages"])
    box(ax, 1.5, 13, 19, 6, "\n".join(wrap(f"“{request}”", 24)))
    box(ax, 25.5, 12.2, 14, 7.6, "SmolLM2\nin NF4\n+ adapters", "trained")
    box(ax, 44.5, 13, 24, 6, answer.replace(', "arguments"', ',\n "arguments"'), "temporary", 8)
    arrow(ax, (20.5, 16), (25.5, 16))
    arrow(ax, (39.5, 16), (44.5, 16))
    for x, words in (
        (11, "tokens of the chat template"),
        (32.5, "greedy generation"),
        (56.5, "one token at a time"),
    ):
        text(ax, x, 10.4, words, 8.5, GREY)
    arrow(ax, (56.5, 9), (56.5, 6.4))
    text(ax, 56.5, 4.6, "equal to the right line, every character?", 9)
    text(
        ax,
        1.5,
        4.6,
        "exact match: the share of test rows with the right line",
        9,
        ORANGE,
        ha="left",
    )
