"""A tensor in four bits as bitsandbytes makes and reads it on a CPU."""

import bitsandbytes
import torch
from bitsandbytes import functional
from bitsandbytes.backends.default.ops import _dequantize_4bit_compute


def theirs(w, block_size, double_quant, code):
    """(packed codes, state) of w as bitsandbytes quantizes it."""
    packed, state = functional.quantize_4bit(
        torch.from_numpy(w),
        blocksize=block_size,
        compress_statistics=double_quant,
        quant_type=code,
    )
    return packed.numpy().ravel(), state


def linear4bit(w, compute_dtype):
    """The layer with the weight w in NF4, double quantization."""
    out, into = w.shape
    layer = bitsandbytes.nn.Linear4bit(into, out, False, compute_dtype, True, "nf4")
    layer.weight = bitsandbytes.nn.Params4bit(
        torch.from_numpy(w), requires_grad=False, compress_statistics=True, quant_type="nf4"
    )
    return layer.to("cpu")


def their_absmax(state):
    if state.state2 is None:
        return state.absmax.numpy()
    return (functional.dequantize_blockwise(state.absmax, state.state2) + state.offset).numpy()


def reference_values(packed, state, shape):
    """What bitsandbytes' own reference dequantizes, on which its loops for a CPU are modelled."""
    return _dequantize_4bit_compute(
        torch.from_numpy(packed),
        torch.from_numpy(their_absmax(state)),
        state.code,
        state.blocksize,
        shape,
        torch.float32,
    ).numpy()


def their_values(packed, state, size):
    """What bitsandbytes dequantizes, of the tensor as one row.

    As one row, because on CPUs with AVX-512 version 0.50 reads the wrong absmax where a row is no
    multiple of the block size: see test_disagreements.py.
    """
    values = torch.ops.bitsandbytes.dequantize_4bit(
        torch.from_numpy(packed).reshape(-1, 1),
        torch.from_numpy(their_absmax(state)),
        state.blocksize,
        state.quant_type,
        [size],
        torch.float32,
    )
    return values.numpy().ravel()
