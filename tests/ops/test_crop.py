import cv2
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ostrack_fast import ops
from ostrack_fast.boxes import crop_window
from ostrack_fast.ops import reference

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
MEAN = torch.tensor(reference.IMAGE_MEAN, dtype=torch.float64).view(3, 1, 1)
STD = torch.tensor(reference.IMAGE_STD, dtype=torch.float64).view(3, 1, 1)


def noise(height, width, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def boxes(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def published(frame, box, factor, size):
    """The crop of the published `sample_target`, from its description: slice, border, resize."""
    image = frame.numpy()
    left, top, side = crop_window(box, factor)
    right, bottom = left + side, top + side
    pad = [max(0, -top), max(bottom - image.shape[0] + 1, 0), max(0, -left), max(right - image.shape[1] + 1, 0)]
    inner = image[top + pad[0] : bottom - pad[1], left + pad[2] : right - pad[3]]
    return cv2.resize(cv2.copyMakeBorder(inner, *pad, cv2.BORDER_CONSTANT), (size, size))


def pixels(patch):
    """The uint8 pixels a normalized float32 patch (B,3,Z,Z) was made from, as (B,Z,Z,3)."""
    values = (patch.cpu().double() * STD + MEAN) * 255
    whole = values.round()
    assert (values - whole).abs().max() < 1e-3
    return whole.to(torch.uint8).permute(0, 2, 3, 1)


def assert_exact(device, frame, box, factor, size):
    patch, scale = ops.crop(frame.to(device), boxes(box).to(device), factor, size)
    left, top, side = crop_window(box, factor)
    expected = reference.crop_pixels(frame.numpy(), left, top, side, size)
    assert np.array_equal(pixels(patch)[0].numpy(), expected), (frame.shape, box, factor, size, side)
    assert scale.tolist() == [size / side]


@pytest.mark.parametrize(
    ("box", "factor", "size"),
    [
        ((100.3, 80.2, 40.0, 30.0), 2.0, 128),
        ((100.3, 80.2, 30.7, 60.1), 4.0, 256),
        ((-5.0, 150.0, 31.0, 20.0), 4.0, 96),
        ((280.0, 190.5, 38.0, 45.0), 5.0, 96),
    ],
)
def test_matches_the_published_crop(device, box, factor, size):
    frame = noise(240, 320)
    patch, _ = ops.crop(frame.to(device), boxes(box).to(device), factor, size)
    assert np.array_equal(pixels(patch)[0].numpy(), published(frame, box, factor, size))


@pytest.mark.parametrize("size", [1, 2, 3, 8, 13, 64, 100])
def test_every_small_side_twice_the_size_and_the_size_itself(device, size):
    frame = noise(230, 240, seed=size)
    near = {size - 1, size, size + 1, 2 * size - 1, 2 * size, 2 * size + 1, 3 * size} - {0}
    for side in near | set(range(1, 9)):
        assert_exact(device, frame, (20.0, 20.0, float(side), float(side)), 1.0, size)


@settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    frame=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    where=st.tuples(st.floats(-1, 2), st.floats(-1, 2)),
    extent=st.tuples(st.floats(0.25, 90), st.floats(0.25, 90)),
    factor=st.sampled_from([1.0, 2.0, 4.0, 5.0]),
    size=st.integers(1, 80),
)
def test_bit_exact_with_opencv(device, frame, where, extent, factor, size):
    height, width = frame
    box = (where[0] * width, where[1] * height, *extent)
    assert_exact(device, noise(height, width, seed=height * 97 + width), box, factor, size)


def test_boxes_of_one_batch_are_cropped_alone(device):
    frame = noise(90, 120).to(device)
    batch = boxes((10.0, 10.0, 20.0, 30.0), (-200.0, 5.0, 9.0, 9.0), (100.0, 70.0, 50.0, 40.0)).to(device)
    patch, scale = ops.crop(frame, batch, 2.0, 40)
    for i in range(3):
        alone, alone_scale = ops.crop(frame, batch[i : i + 1], 2.0, 40)
        assert torch.equal(patch[i : i + 1], alone)
        assert torch.equal(scale[i : i + 1], alone_scale)


def test_a_crop_without_any_of_the_frame_is_border(device):
    patch, _ = ops.crop(noise(50, 50).to(device), boxes((-500.0, 10.0, 20.0, 20.0)).to(device), 2.0, 32)
    assert pixels(patch).count_nonzero() == 0


def test_the_last_column_and_row_are_border(device):
    frame = torch.full((40, 40, 3), 200, dtype=torch.uint8)
    patch, _ = ops.crop(frame.to(device), boxes((0.0, 0.0, 40.0, 40.0)).to(device), 1.0, 40)
    expected = frame.clone()
    expected[-1], expected[:, -1] = 0, 0
    assert torch.equal(pixels(patch)[0], expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_against_float64(device, dtype):
    """All 256 values in every channel, at a size where the resize changes nothing."""
    frame = torch.arange(256, dtype=torch.uint8).view(16, 16, 1).repeat(1, 1, 3)
    framed = torch.nn.functional.pad(frame, (0, 0, 0, 1, 0, 1))
    patch, _ = ops.crop(framed.to(device), boxes((0.0, 0.0, 16.0, 16.0)).to(device), 1.0, 16, dtype)
    assert patch.dtype == dtype
    exact = (frame.permute(2, 0, 1).double() / 255 - MEAN) / STD
    plain = ((frame.permute(2, 0, 1).float() / 255 - MEAN.float()) / STD.float()).to(dtype)
    error = (patch[0].cpu().double() - exact).abs().max()
    assert error <= 2 * (plain.double() - exact).abs().max()


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_16_bit_patches_are_the_float32_patch_rounded_to_nearest_even(device, dtype):
    frame, box = noise(200, 260).to(device), boxes((60.0, 50.0, 47.0, 51.0)).to(device)
    wide, _ = ops.crop(frame, box, 4.0, 256)
    narrow, _ = ops.crop(frame, box, 4.0, 256, dtype)
    assert torch.equal(narrow, wide.to(dtype))


def test_threads_do_not_change_the_result(threads):
    frame, box = noise(120, 160), boxes((60.0, 50.0, 47.0, 51.0), (-9.0, -9.0, 30.0, 30.0))
    with ops.use("native"):
        patch, _ = ops.crop(frame, box, 4.0, 96)
    expected, _ = reference.crop(frame, box, 4.0, 96)
    assert torch.equal(pixels(patch), pixels(expected))


@pytest.mark.parametrize("bad", [(0.0, 0.0, 0.0, 5.0), (0.0, 0.0, -3.0, -3.0), (float("nan"), 0.0, 5.0, 5.0)])
def test_a_box_that_is_none_is_an_error(device, bad):
    if device.type == "cuda":
        pytest.skip("on a GPU boxes are not looked at: that would wait for it")
    with pytest.raises(ValueError, match="box"):
        ops.crop(noise(20, 20), boxes(bad), 2.0, 16)


@pytest.mark.parametrize("bad", [(0.0, 0.0, 0.0, 5.0), (float("inf"), 0.0, 5.0, 5.0), (0.0, 0.0, 1e300, 1e300)])
def test_the_kernel_itself_rejects_boxes_it_cannot_place(bad):
    with pytest.raises(ValueError, match="cpu_crop"):
        ops.OPS["crop"].backends["native"].run(noise(20, 20), boxes(bad), 2.0, 16)
