"""One page of formulas, shapes and numbers, to print."""

import math

from lessons.book.drawings.elements import *

LINE = 2.35  # height of a line
HEAD = 3.4  # height of a heading
GB = 1e9


def bytes_of_a_step():
    """Return (name, bytes) of full fine-tuning, LoRA and QLoRA: 10⁹ weights, 10⁷ trained ones."""
    weights, trained = 1e9, 1e7
    adapter = 16 * trained
    return [
        ("full", 16 * weights),
        ("LoRA", 4 * weights + adapter),
        ("QLoRA", bits_per_weight() / 8 * weights + adapter),
    ]


def topics():
    """Return the columns: lists of (heading, kind, lines); a line is (formula, words)."""
    sizes = ", ".join(f"{name} {size / GB:.2f} GB" for name, size in bytes_of_a_step())
    left = [
        ("A Llama block", "frozen", [
            (r"$x\,/\,\sqrt{\mathrm{mean}(x^2)+\varepsilon}\;\cdot w$",
             "RMSNorm, per token; no mean is subtracted"),
            (r"$(a\cos\varphi - b\sin\varphi,\; b\cos\varphi + a\sin\varphi)$",
             "RoPE: pair (j, j + hd/2) of Q, K"),
            (r"$\varphi = t\,\theta^{-2j/hd}$", "position t from 0, pair j from 0"),
            (r"$\mathrm{softmax}(QK^{\!\top}/\sqrt{hd}+M)\,V$", "Q, K, V: (N, H, T, hd)"),
            (r"$M_{ts} = -\infty \;\mathrm{for}\; s > t$", "causal mask: no later token"),
            (r"$(\mathrm{silu}(xW_{gate}^{\!\top})\odot xW_{up}^{\!\top})\,W_{down}^{\!\top}$",
             "SwiGLU, silu(a) = a·σ(a)"),
        ]),
        ("Loss", "data", [
            (r"$L=-\Sigma\, m\,\log p\;/\;\Sigma\, m$",
             "p of the next token; m is 1 in the answer, else 0"),
            (r"$\log V$", f"a model that knows nothing; V = 256: {math.log(256):.2f} nats"),
            (r"$L=\Sigma\, n_i L_i\;/\;\Sigma\, n_i$", "micro-batches of nᵢ target tokens each"),
        ]),
        ("LoRA", "trained", [
            (r"$h = xW_0^{\!\top} + s\,xA^{\!\top}B^{\!\top},\quad s=\alpha/r$",
             "rows as in the code"),
            (r"$W_0$ (out, in)   $A$ (r, in)   $B$ (out, r)", "r·(in + out) trained"),
            (r"$A\sim U(\pm 1/\sqrt{in}),\quad B=0$", "so the start equals the base"),
            (r"$\partial L/\partial B = s\,G A^{\!\top}$", "G = ∂L/∂W′ (out, in), never stored"),
            (r"$\partial L/\partial A = s\,B^{\!\top} G$", "zero at the first step"),
            (r"$W' = W_0 + s\,BA$", "merge; then the adapter is gone"),
        ]),
        ("QLoRA", "trained", [
            (r"$y=x\hat W^{\!\top}+s\,xA^{\!\top}B^{\!\top}$", "Ŵ is computed, used, and dropped"),
            (r"$\partial L/\partial x=g\hat W+s\,gBA$", "codes and scales have no gradient"),
            (r"$\hat W+s\,BA$", "the model that was trained: dense"),
        ]),
    ]  # fmt: skip
    right = [
        ("AdamW", "trained", [
            (r"$m\leftarrow\beta_1 m+(1-\beta_1)g$", r"v likewise, with $g^2$ and $\beta_2$"),
            (r"$\hat m=m/(1-\beta_1^t),\;\hat v=v/(1-\beta_2^t)$", "t from 1, and on after a stop"),
            (r"$\theta\leftarrow\theta-\eta\lambda\theta-\eta\,\hat m/(\sqrt{\hat v}+\varepsilon)$",
             "first step: ±η"),
            (r"$\|\Delta W\|\propto s\,\eta\sqrt{r}$", "after the first step of LoRA"),
            (r"$g\leftarrow g\cdot\min(1,\,c/\|g\|)$", "clipping: one norm over all leaves"),
        ]),
        ("NF4, blocks of 64", "frozen", [
            (r"$c=\mathrm{argmin}_i\,|\mathrm{NF4}_i-w/\mathrm{absmax}|$",
             "16 values, 0 and ±1 among them"),
            (r"$\hat w=\mathrm{NF4}[c]\cdot\mathrm{absmax}$", "absmax of the block of w"),
            (r"absmax $\approx \mathrm{map}[k]\cdot\mathrm{scale}+\mathrm{mean}$",
             "double quantization: 8 bits"),
            (f"{4 + 32 / 64} or {bits_per_weight():.3f} bits",
             "per weight, float32 or 8-bit absmax"),
        ]),
        ("Bytes of a step", "data", [
            ("trained: 16 per number", "4 weight, 4 gradient, 8 moments"),
            (f"frozen: 4, or {bits_per_weight() / 8:.3f} in NF4", "no gradient, no moments"),
            ("activations", "grow with the tokens; LoRA keeps as many"),
            (sizes, "10⁹ weights, 10⁷ trained"),
        ]),
        ("First questions about a bad run", "data", [
            ("loss stays, to the last digit", "A and B both zero; nothing trained"),
            ("loss near zero at once", "targets not shifted; no mask"),
            ("low in training, high held out", "few rows; split; other template"),
            ("good separate, bad merged", "other W; scaling; 4 bits again"),
            ("differs after a stop", "moments or step not saved"),
            ("differs with the batch size", "padding counted; mean of means"),
        ]),
    ]  # fmt: skip
    return left, right


@drawing(
    7.1,
    "A page of formulas with their shapes: the Llama block, the loss, LoRA, QLoRA, AdamW, NF4, the "
    "bytes of a step, and first questions about a run that goes wrong.",
    width=10.5,
)
def cheat_sheet(ax):
    title(ax, 1.5, 68.5, "LoRA and QLoRA on one page", 13)
    for x, column in zip((1.5, 53.5), topics()):
        y = 66.0
        for heading, kind, lines in column:
            height = HEAD + LINE * len(lines)
            rectangle(ax, x, y - height, 50, height, kind, lw=1, alpha=0.35)
            title(ax, x + 1, y - 1.8, heading, 10)
            for i, (formula, words) in enumerate(lines):
                at = y - HEAD - LINE * (i + 0.4)
                text(ax, x + 1, at, formula, 8.5, ha="left")
                text(ax, x + 49, at, words, 7.5, GREY, ha="right")
            y -= height + 1.2
