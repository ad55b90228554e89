"""The formats of the study `four_bits_of_2026`, against ml_dtypes and torchao."""

from functools import partial

import numpy as np
import pytest

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
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="the peers group is not installed")
    x = np.clip(numbers(), -largest, largest)  # above it, E4M3 is not a number there
    theirs = x.astype(getattr(ml_dtypes, dtype)).astype(np.float32)
    np.testing.assert_array_equal(getattr(formats, name)(x), theirs)
    assert len(np.unique(theirs)) == {"e2m1": 15, "e4m3": 253}[name], "all finite values are met"


def test_the_scale_of_mxfp4_is_a_number_of_e8m0():
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="the peers group is not installed")
    absmax = np.exp2(np.random.default_rng(0).uniform(-100, 100, 5_000))
    scale = formats.e8m0(absmax) / 6
    np.testing.assert_array_equal(scale.astype(ml_dtypes.float8_e8m0fnu).astype(float), scale)
    assert (absmax / scale >= 4).all() and (absmax / scale < 8).all()


def in_torchao(w, name):
    """Return w (n,) float32 after torchao's MXFP4 (scale down or up) or NVFP4."""
    torch = pytest.importorskip("torch", reason="the peers group is not installed")
    pytest.importorskip("torchao", reason="the peers group is not installed")
    from torchao.prototype.mx_formats import config, mx_tensor, nvfp4_tensor

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


def test_the_values_that_stochastic_rounding_chooses_from_are_all_of_e2m1():
    torch = pytest.importorskip("torch", reason="the peers group is not installed")
    pytest.importorskip("torchao", reason="the peers group is not installed")
    from torchao.prototype.mx_formats.kernels import f4_unpacked_to_f32

    theirs = f4_unpacked_to_f32(torch.arange(16, dtype=torch.uint8)).numpy()
    np.testing.assert_array_equal(np.unique(theirs), formats.VALUES["E2M1"])
