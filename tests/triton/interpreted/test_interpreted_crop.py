"""The crop under the interpreter: equal to OpenCV's, bit for bit."""

import pytest
import torch
from race_guard import guard
from triton.runtime.errors import InterpreterError

from ostrack_fast import kernels
from ostrack_fast.ops import reference

NORMALIZATION = reference.IMAGE_MEAN, reference.IMAGE_STD
FRAME = torch.randint(0, 256, (60, 80, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("boxes", "factor", "size"),
    [
        ([[20.0, 15.0, 10.3, 8.7]], 4.0, 24),  # inside
        ([[-9.0, -7.0, 12.0, 10.0], [70.0, 50.0, 14.0, 13.0]], 2.0, 20),  # over the corners
        ([[30.5, 20.5, 16.0, 16.0]], 2.0, 16),  # side 32: the exact halving
        ([[24.0, 14.0, 16.0, 16.0]], 2.0, 32),  # side 32: the identity
        ([[0.5, 1.5, 7.0, 7.0], [1.5, 0.5, 7.0, 7.0]], 1.0, 13),  # corners at .5 round to even
        ([[35.2, 25.9, 3.1, 2.7]], 4.1, 70),  # enlarged
        ([[30.0, 20.0, 10.0, 10.0]], 4.3, 11),  # side 43, but 44 if the factor were rounded to float32
        ([[5.0, 5.0, 70.0, 50.0]], 5.0, 18),  # far larger than the frame
        ([[500.0, 300.0, 20.0, 20.0]], 2.0, 8),  # nothing but border
        ([[40.0, 30.0, 0.2, 0.1]], 2.0, 5),  # a single pixel
    ],
)
def test_crop(boxes, factor, size):
    box = torch.tensor(boxes, dtype=torch.float64)
    with guard(size):
        patch, scale = kernels.crop(FRAME, box, factor, size, torch.float32, *NORMALIZATION)
    expected, expected_scale = reference.crop(FRAME, box, factor, size)
    assert torch.equal(scale, expected_scale)
    assert torch.equal(patch, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_rounds_once(dtype):
    box = torch.tensor([[20.0, 15.0, 10.3, 8.7]], dtype=torch.float64)
    assert torch.equal(
        kernels.crop(FRAME, box, 2.0, 8, dtype, *NORMALIZATION)[0], reference.crop(FRAME, box, 2.0, 8, dtype)[0]
    )


def test_the_last_row_and_column_are_border():
    frame = torch.full((20, 30, 3), 255, dtype=torch.uint8)
    box = torch.tensor([[24.0, 14.0, 8.0, 8.0]], dtype=torch.float64)
    patch, _ = kernels.crop(frame, box, 1.0, 8, torch.float32, *NORMALIZATION)
    seen = (patch[0, 0] > 0).nonzero()
    assert seen.max(0).values.tolist() == [4, 4]  # rows 14..18 of 0..19, columns 24..28 of 0..29


@pytest.mark.parametrize(("size", "tile"), [(24, 4), (32, 16)])
def test_in_patches(size, tile):
    """The same pixels, a ViT's patch after the other."""
    box, grid = torch.tensor([[20.0, 15.0, 10.3, 8.7], [-9.0, -7.0, 12.0, 10.0]], dtype=torch.float64), size // tile
    image, scale = kernels.crop(FRAME, box, 3.0, size, torch.float16, *NORMALIZATION)
    with guard(size):
        patches, again = kernels.crop(FRAME, box, 3.0, size, torch.float16, *NORMALIZATION, tile)
    cut = image.view(2, 3, grid, tile, grid, tile).permute(0, 2, 4, 1, 3, 5)
    assert torch.equal(patches, cut.reshape(2, grid**2, -1)) and torch.equal(again, scale)


def test_the_guard_sees_patches_that_do_not_fit():
    box = torch.tensor([[20.0, 15.0, 10.3, 8.7]], dtype=torch.float64)
    with pytest.raises(InterpreterError, match=r"outside|race|two lanes"), guard():
        kernels.crop(FRAME, box, 3.0, 24, torch.float16, *NORMALIZATION, 5)
