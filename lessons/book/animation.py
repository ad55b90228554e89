"""An animation of a run: the loss, one answer, and the singular values of one update ΔW.

    python -m lessons.book.animation   # writes figures/run.gif and its last frame, run_end.png

Half a minute. QLoRA on `micro`, r = 8, 400 steps of 16 questions.
"""

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

import minilora
from minilora import LoraConfig, TrainConfig, data
from minilora.evaluation.plot import GREY, INK, LINES
from minilora.layers import lora_delta
from minilora.tree import get

GIF = Path(__file__).parents[2] / "figures" / "run.gif"
WATCHED = "model.layers.2.self_attn.v_proj"
STEPS = [*range(0, 40, 2), *range(40, 160, 5), *range(160, 401, 15)]  # a frame each
WRONG = LINES[1]["color"]
RIGHT = LINES[0]["color"]


def run():
    """Train, and return the question, the right answer, and (loss, answer, singular values)s."""
    model, tokenizer = minilora.load("micro", "nf4-dq")
    lora_config = LoraConfig(r=8, lora_alpha=16, target_modules=("all-linear",))
    adapters, model = minilora.get_peft_model(model, lora_config, 0)
    settings = TrainConfig(iters=400, batch_size=16, learning_rate=4e-3, mask_prompt=True)
    examples, _ = data.encode_rows(data.load_rows("questions", "train"), tokenizer, settings)
    row = data.load_rows("questions", "valid")[0]
    prompt = tokenizer.encode(row["prompt"])
    frames = []

    def watch(adapters, step, loss):
        if step in STEPS:
            ids = minilora.generate(adapters, model, prompt, max_tokens=24)
            values = np.linalg.svd(lora_delta(get(adapters, WATCHED)), compute_uv=False)
            frames.append((step, loss, tokenizer.decode(list(ids)), values))

    losses = []
    state = minilora.start(adapters, settings)
    watch(state.adapters, 0, None)
    for state, records in minilora.run(state, model, examples, settings, quiet=True):
        losses.append(records[0]["loss"])
        watch(state.adapters, state.step, losses[-1])
    return row["prompt"], row["completion"], losses, frames


def picture(prompt, completion, losses, frame, largest):
    """Draw one frame."""
    step, _, answer, values = frame
    fig = Figure(figsize=(7, 3.4), dpi=100, facecolor="white")
    left = fig.add_axes((0.08, 0.38, 0.42, 0.5))
    left.plot(range(1, step + 1), losses[:step], **LINES[0], lw=1.4)
    left.set(xlim=(0, 400), ylim=(0, max(losses) * 1.05), xlabel="step")
    left.set_title("loss (nats per token)", loc="left", fontsize=10, color=INK)
    right = fig.add_axes((0.6, 0.38, 0.37, 0.5))
    right.bar(range(1, 13), values[:12], color=[LINES[1]["color"]] * 8 + ["#c4c4c4"] * 4)
    right.set(ylim=(0, largest * 1.05), xlabel="k", xticks=(1, 4, 8, 12))
    title = "singular values σₖ of one ΔW, r = 8"
    right.set_title(title, loc="left", fontsize=10, color=INK)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    style = {"fontsize": 10, "family": "monospace"}
    fig.text(0.03, 0.17, prompt.strip().replace("\n", " "), color=GREY, **style)
    fig.text(0.03, 0.06, f"step {step:3d}", color=INK, **style)
    for i, letter in enumerate(answer.strip("\n")[:40]):
        colour = RIGHT if completion[i : i + 1] == letter else WRONG
        fig.text(0.17 + 0.0121 * i, 0.06, letter, color=colour, **style)
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def main():
    prompt, completion, losses, frames = run()
    largest = max(values[0] for *_, values in frames)
    pictures = [picture(prompt, completion, losses, frame, largest) for frame in frames]
    colours = pictures[-1].quantize(64)
    pictures = [p.quantize(palette=colours, dither=Image.Dither.NONE) for p in pictures]
    durations = [90] * (len(pictures) - 1) + [3000]  # milliseconds
    pictures[0].save(
        GIF, save_all=True, append_images=pictures[1:], duration=durations, loop=0, optimize=True
    )
    pictures[-1].save(GIF.with_name("run_end.png"))  # for readers who prefer no motion
    print(f"{GIF}: {len(pictures)} frames, {GIF.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
