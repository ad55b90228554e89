"""The formats of the study `four_bits_of_2026`, against ml_dtypes and torchao."""

from functools import partial

import ml_dtypes
import numpy as np
import pytest
import torch
from torchao.prototype.mx_formats import config, mx_tensor, nvfp4_tensor

from minilora.lessons.studies.serving import four_bits_of_2026_sweep as formats


def numbers():
    """Return numbers of many sizes, and all that are halfway between two quarters (ties)."""
    rng = np.random.default_rng(0)
    sizes = np.exp2(rng.uniform(-12, 10, 20_000))
    ties = np.arange(-64, 65) / 8
    return np.concatenate([rng.standard_normal(20_000) * sizes, ties, [0, 448]]).astype(np.float32)


@pytest.mark.parametrize(
    "name, dtype, largest", [("e2m1", "float4_e2m1fn", 6), ("e4m3", "float8_e4m3fn", 448)]
)
def test_small_floats_round_as_in_ml_dtypes(name, dtype, largest):
    x = np.clip(numbers(), -largest, largest)  # above it, E4M3 is not a number there
    theirs = x.astype(getattr(ml_dtypes, dtype)).astype(np.float32)
    np.testing.assert_array_equal(getattr(formats, name)(x), theirs)
    values = np.unique(theirs)
    if name == "e2m1":  # those that stochastic rounding chooses from
        np.testing.assert_array_equal(values, formats.VALUES["E2M1"])
    else:
        assert len(values) == 253, "all finite values are met"


def in_torchao(w, name):
    """Return w (n,) float32 after torchao's MXFP4 (scale down or up) or NVFP4."""
    x = torch.from_numpy(w.reshape(64, -1))
    if name == "nvfp4":
        scale = nvfp4_tensor.per_tensor_amax_to_scale(x.abs().max())
        q = nvfp4_tensor.NVFP4Tensor.to_nvfp4(x, per_tensor_scale=scale)
    else:
        mode = getattr(config.ScaleCalculationMode, name)
        q = mx_tensor.MXTensor.to_mx(x, torch.float4_e2m1fn_x2, 32, mode)
    return q.dequantize(torch.float32).numpy().ravel()


HOW = {
    "FLOOR": formats.FORMATS["MXFP4"],
    "RCEIL": ("E2M1", 32, partial(formats.e8m0, up=True)),
    "nvfp4": formats.FORMATS["NVFP4"],
}


@pytest.mark.parametrize("name", HOW)
def test_whole_tensors_are_those_of_torchao(name):
    w = np.random.default_rng(1).standard_normal(2**16).astype(np.float32)
    ours = formats.quantized(w, *HOW[name])
    theirs = in_torchao(w, name)
    differ = np.abs(ours - theirs) > 1e-6 * np.abs(w).max()
    # NVFP4 in torchao multiplies with a reciprocal in float32, whose error of 2^-23 can decide a
    # weight that near a tie. Powers of two are exact.
    assert differ.mean() <= (1e-4 if name == "nvfp4" else 0), f"{differ.mean():.2%} differ"
