"""LoRA: the two matrices, and their gradient."""

from matplotlib.patches import Polygon

from lessons.book.drawings.elements import *


@drawing(
    4.5,
    "LoRA adds the product of two small trained matrices B and A to a frozen matrix W. QLoRA "
    "does the same, but stores W in 4 bits and dequantizes it for each matrix product.",
)
def lora_and_qlora(ax):
    for x, name, words, kind in ((1.5, "LoRA", "W", "frozen"), (37, "QLoRA", "Ŵ", "temporary")):
        title(ax, x, 42.7, name)
        text(ax, x + 17.6, 40.7, f"h = {words}x + (α/r)·B(Ax)", ha="left")
        matrix(ax, x, 21, 9.5, 9.5, words, kind)
        text(ax, x + 5.2, 32, "(out, in)", color=GREY, ha="left")
        box(ax, x + 16, 12.5, 8.4, 3.4, "x   (in)")
        adapter_path(ax, x + 20.2)
        arrow(ax, (x + 4.7, 30.5), (x + 4.7, 36.6), (x + 14.7, 36.6))
    arrow(ax, (17.5, 14.2), (6.2, 14.2), (6.2, 21))
    arrow(ax, (53, 14.2), (50, 14.2), (50, 25.7), (46.5, 25.7))
    box(ax, 36.5, 11.8, 10.5, 5, "4-bit codes\n+ scales", "frozen")
    arrow(ax, (41.7, 16.8), (41.7, 21), color=GREEN)
    text(ax, 46.1, 18.9, "dequantize", 8, GREEN)
    n, r, bits = 4096, 8, bits_per_weight()
    count = f"{2 * r * n:,} numbers ({200 * r / n:.2f} %)"
    sizes = f"16 bits: {n * n * 2 / 1e6:.1f} MB", f"{bits:.2f} bits: {n * n * bits / 8e6:.2f} MB"
    rows = (
        (8.6, "W, 4096 × 4096", *sizes),
        (6.4, "A and B, r = 8", count, count),
        (4.2, "gradients, Adam", "for A and B only", "for A and B only"),
    )
    for y, head, left, right in rows:
        text(ax, 1.5, y, head, color=GREY, ha="left")
        text(ax, 15.5, y, left, ha="left")
        text(ax, 47, y, right, ha="left")
    words = "made for one product, then dropped"
    legend(ax, 15.5, 1.2, 11, frozen="frozen", trained="trained", temporary=words)


def adapter_path(ax, x):
    """Draw A and B above each other, their shapes, and the sum at the end."""
    fill, edge, _ = KINDS["trained"]
    for y, low, high, words, shape in ((20, 6, 1.3, "A", "(r, in)"), (27, 1.3, 6, "B", "(out, r)")):
        corners = [(x - low, y), (x + low, y), (x + high, y + 4.5), (x - high, y + 4.5)]
        ax.add_patch(Polygon(corners, fc=fill, ec=edge, lw=1.4))
        text(ax, x, y + 2.25, words, 11)
        text(ax, x + 6, y + 2.25, shape, color=GREY, ha="left")
    text(ax, x + 6, 25.8, "rank r", color=ORANGE, ha="left")
    text(ax, x + 0.7, 34, "· α/r", color=ORANGE, ha="left")
    arrow(ax, (x, 15.9), (x, 20))
    arrow(ax, (x, 24.5), (x, 27))
    arrow(ax, (x, 31.5), (x, 36.6), (x - 2.7, 36.6))
    plus(ax, x - 4.2, 36.6)
    arrow(ax, (x - 4.2, 38), (x - 4.2, 41.2))


@drawing(
    2.2,
    "W' equals W, of shape (out, in), plus alpha over r times B, of shape (out, r), times A, "
    "of shape (r, in). B starts at zero and A at random values.",
)
def low_rank_update(ax):
    matrix(ax, 4, 6.5, 12, 12, "W'", "temporary", "out", "in")
    text(ax, 19.2, 12.5, "=", 14)
    matrix(ax, 25, 6.5, 12, 12, "W", "frozen", "out", "in")
    text(ax, 41, 12.5, "+   α/r ·", 12)
    matrix(ax, 49.5, 6.5, 1.8, 12, "B", "trained", "out", "r")
    matrix(ax, 55.5, 11.6, 12, 1.8, "A", "trained", "r", "in")
    text(ax, 10, 4.4, "after merging", color=GREEN)
    text(ax, 31, 4.4, "frozen: out · in numbers", color=BLUE)
    text(ax, 57, 4.4, "trained: r · (out + in) numbers", color=ORANGE)
    text(ax, 57, 2.4, "start: B = 0, A random, so B·A = 0", color=GREY)


@drawing(
    3.2,
    "The gradient of B is s times G times A transposed, of shape (out, r). The gradient of A is s "
    "times B transposed times G, of shape (r, in). With B = 0, a step of gradient descent changes "
    "W by minus η s² times G Aᵀ times A: each row of the change is a sum of multiples of the rows "
    "of A.",
)
def seen_through_factors(ax):
    text(ax, 3.4, 24.2, "∂L/∂B\n(out, r)", color=ORANGE)
    matrix(ax, 7, 20, 2.2, 8.5, "", "trained")
    text(ax, 12, 24.2, "= s ·", 12)
    matrix(ax, 15, 20, 8.5, 8.5, "G", "temporary")
    matrix(ax, 24.9, 20, 2.2, 8.5, "Aᵀ", "trained")
    text(ax, 37, 26.8, "∂L/∂A  (r, in)", color=ORANGE)
    matrix(ax, 32.7, 23.1, 8.5, 2.2, "", "trained")
    text(ax, 44, 24.2, "= s ·", 12)
    matrix(ax, 47, 23.1, 8.5, 2.2, "Bᵀ", "trained")
    matrix(ax, 57, 20, 8.5, 8.5, "G", "temporary")
    for x in (19.2, 61.2):
        text(ax, x, 30, "full fine-tuning sees G", color=GREEN)
    text(ax, 17, 17.6, "B sees G through the rows of A")
    text(ax, 49, 17.6, "A sees G through the columns of B")
    ax.plot([1.5, 68.5], [15, 15], color=GREY, lw=0.8)
    text(ax, 3.4, 7, "(out, in)", color=GREY)
    matrix(ax, 7, 2.8, 8.5, 8.5, "ΔW", "temporary")
    text(ax, 20, 7, "= −η s² ·", 12)
    matrix(ax, 24.9, 2.8, 2.2, 8.5, "", "temporary")
    text(ax, 26, 12.5, "G Aᵀ", color=GREEN)
    matrix(ax, 28.6, 5.9, 8.5, 2.2, "A", "trained")
    title(ax, 40.5, 11, "One gradient step from B = 0", 9)
    text(ax, 40.5, 7.6, "Each row of ΔW is a sum of\nmultiples of the r rows of A.", ha="left")
    text(ax, 40.5, 3.8, "G's part in other directions is lost.", ha="left")


@drawing(
    3.1,
    "LoRA's backward pass. The gradient g of the output gives the gradients of B and A "
    "through the rank-r bottleneck. The gradient of W, a full matrix, is never computed.",
)
def lora_gradient(ax):
    columns = (
        (2, "x   (in)", "Aᵀsg' + Wᵀg"),
        (27, "Ax   (r)", "g' = Bᵀg   (r)"),
        (52, "h   (out)", "g = ∂L/∂h"),
    )
    for x, forward, backward in columns:
        box(ax, x, 20, 11, 3.6, forward)
        box(ax, x, 11.5, 11, 3.6, backward, "temporary", 8.5)
    factors = (
        (16, "A", "∂L/∂A = s·g' xᵀ\n(r, in)"),
        (41, "B", "∂L/∂B = s·g (Ax)ᵀ\n(out, r)"),
    )
    for x, name, gradient in factors:
        box(ax, x, 20, 8, 3.6, name, "trained", 11)
        arrow(ax, (x - 3, 21.8), (x, 21.8))
        arrow(ax, (x + 8, 21.8), (x + 11, 21.8))
        arrow(ax, (x + 11, 13.3), (x - 3, 13.3), color=GREEN)
        box(ax, x - 3, 3.6, 14, 4.6, gradient, "trained")
        arrow(ax, (x + 16.5, 11.5), (x + 16.5, 9.6), (x + 7, 9.6), (x + 7, 8.2), color=GREEN)
    box(ax, 28.5, 25.8, 8, 3.4, "W", "frozen", 11)
    arrow(ax, (7.5, 23.6), (7.5, 27.5), (28.5, 27.5))
    arrow(ax, (36.5, 27.5), (57.5, 27.5), (57.5, 23.6))
    text(ax, 50.5, 23.4, "· s", color=ORANGE)
    text(ax, 44.8, 18.7, "forward", color=GREY)
    text(ax, 44.8, 16.2, "backward", color=GREEN)
    words = "∂L/∂W = g xᵀ (out, in) is never computed: W is not an argument of the gradient"
    text(ax, 35, 1.4, words, color=BLUE)
