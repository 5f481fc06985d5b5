"""Images cut into the patches of a ViT: the compiled copy against PyTorch's."""

import pytest
import torch

from ostrack_fast import ops
from ostrack_fast.ops import native
from ostrack_fast.ops.layers import cut_patches

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("shape", [(1, 3, 192, 192), (3, 2, 8, 12), (2, 1, 4, 4), (0, 3, 8, 8), (1, 3, 0, 8)])
def test_every_pixel_lands_where_pytorch_puts_it(shape, dtype):
    image, patch = torch.arange(torch.Size(shape).numel()).remainder(251).to(dtype).view(shape), 4
    expected = (
        torch.nn.functional.unfold(image.double(), patch, stride=patch).transpose(1, 2) if image.numel() else None
    )
    with ops.use("native"):
        assert native.unsupported_reason("patches", CPU) is None
        compiled = cut_patches(patch, CPU)(image)
    with ops.use("reference"):
        plain = cut_patches(patch, CPU)(image)
    assert compiled.dtype == plain.dtype == dtype and compiled.shape == plain.shape
    assert torch.equal(compiled, plain)
    assert expected is None or torch.equal(compiled.double(), expected)


def test_views_with_gaps_are_cut_as_what_they_show():
    image = torch.randn(2, 3, 16, 24)[:, :, :, 4:20]
    assert not image.is_contiguous()
    torch.testing.assert_close(cut_patches(8, CPU)(image), cut_patches(8, CPU)(image.contiguous()), rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_images_that_do_not_divide_are_refused(backend):
    with ops.use(backend):
        cut = cut_patches(16, CPU)
    for wrong in (
        torch.ones(1, 3, 32, 31),
        torch.ones(1, 3, 17, 32),
        torch.ones(3, 32, 32),
        torch.ones(1, 3, 32, 32).int(),
    ):
        with pytest.raises(ValueError, match="multiples of 16"):
            cut(wrong)
    with pytest.raises(RuntimeError, match="has no gradient"):
        cut(torch.ones(1, 3, 32, 32, requires_grad=True))
