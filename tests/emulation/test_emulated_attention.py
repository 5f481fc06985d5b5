"""The CUDA attention kernels, run on the CPU, against the reference in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from c_abi import EDTYPE, EINVAL
from emulator import COPIES, ORDERS, EmulationError, Emulator

from ostrack_fast.ops import reference

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.contiguous()
    return tensor.view(torch.int16).numpy().view(np.uint16) if tensor.dtype == torch.bfloat16 else tensor.numpy()


def to_torch(array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(array.view(np.int16)).view(dtype) if dtype == torch.bfloat16 else torch.from_numpy(array)


def make_qkv(batch, tokens, heads, width, dtype, gain=1.0, seed=0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(batch, tokens, 3, heads, width, generator=generator) * gain).to(dtype)


def check(kernels: Emulator, qkv: torch.Tensor, mask: torch.Tensor | None, groups: int = 1) -> None:
    """Output, score and log-sum-exp, each no worse than twice PyTorch's own error at the same dtype."""
    out, score, lse = kernels.attention(to_numpy(qkv), None if mask is None else mask.numpy(), groups=groups)
    exact_out, exact_score = reference.attention(qkv.double(), mask)
    torch_out, torch_score = reference.attention(qkv, mask)
    close_as(to_torch(out, qkv.dtype), torch_out, exact_out)
    if mask is not None:
        close_as(torch.from_numpy(score), torch_score, exact_score)
        # Half precision has float32 logits here: its score is as good as float32's.
        torch.testing.assert_close(torch.from_numpy(score).double(), exact_score, rtol=2e-5, atol=1e-9)
    query, key, _ = qkv.double().permute(2, 0, 3, 1, 4).unbind(0)
    exact_lse = (query @ key.mT * qkv.shape[-1] ** -0.5).logsumexp(-1)
    torch.testing.assert_close(torch.from_numpy(lse).double(), exact_lse, rtol=1e-6, atol=2e-6)


def close_as(ours: torch.Tensor, theirs: torch.Tensor, exact: torch.Tensor) -> None:
    assert ours.shape == theirs.shape == exact.shape
    if exact.numel() == 0:
        return
    error, allowed = (ours.double() - exact).abs().max(), 2 * (theirs.double() - exact).abs().max()
    # A handful of elements may happen to be exact in PyTorch: one rounding is always allowed.
    allowed = max(allowed, exact.abs().max() * torch.finfo(ours.dtype).eps)
    assert error <= allowed, f"error {error:.3e}, allowed {allowed:.3e}"  # also false for NaN


def rows(template: int, *chosen: int) -> torch.Tensor:
    return torch.isin(torch.arange(template), torch.tensor(chosen))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("search", [256, 180, 126, 89])
def test_tracker_sizes(kernels, dtype, search):
    check(kernels, make_qkv(1, 64 + search, 2, 64, dtype), rows(64, 27))


def test_larger_tracker(kernels):
    check(kernels, make_qkv(1, 144 + 576, 1, 64, torch.float16), rows(144, 65))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [32, 64, 96, 128])
@pytest.mark.parametrize(("template", "tokens"), [(1, 1), (7, 20), (65, 131)])
def test_tails(kernels, dtype, width, template, tokens):
    check(kernels, make_qkv(1, tokens, 2, width, dtype), rows(template, 0, template - 1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_batch_and_masks(kernels, dtype):
    """A mask for each batch item, one of them empty; one mask for all; every row chosen; none asked for."""
    qkv = make_qkv(3, 130, 2, 32, dtype)
    own = torch.stack((rows(70, 3, 64, 69), torch.zeros(70, dtype=torch.bool), torch.ones(70, dtype=torch.bool)))
    check(kernels, qkv, own)
    check(kernels, qkv, own[0])
    check(kernels, qkv, own[2])
    check(kernels, qkv, None)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sharp_softmax(kernels, dtype):
    """Logits in the hundreds: the running maximum moves, weights underflow, and nothing becomes NaN."""
    qkv = make_qkv(1, 200, 1, 64, dtype, gain=4.0)
    out, score, _ = kernels.attention(to_numpy(qkv), rows(64, 5).numpy())
    exact_out, exact_score = reference.attention(qkv.double(), rows(64, 5))
    close_as(to_torch(out, dtype), reference.attention(qkv)[0], exact_out)
    close_as(torch.from_numpy(score), reference.attention(qkv, rows(64, 5))[1], exact_score)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_not_chosen_leave_the_score_alone(kernels, dtype):
    qkv = make_qkv(1, 100, 1, 32, dtype)
    expected = kernels.attention(to_numpy(qkv), rows(20, 4).numpy())[1]
    qkv[0, 5:20, 0] = torch.nan
    score = kernels.attention(to_numpy(qkv), rows(20, 4).numpy())[1]
    np.testing.assert_array_equal(score, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_key_that_is_nan_shows(kernels, dtype):
    """In every query: a wrong network must not look like one that ignores a token."""
    qkv = make_qkv(1, 100, 1, 32, dtype)
    qkv[0, 70, 1] = torch.nan
    out, score, _ = kernels.attention(to_numpy(qkv), rows(20, 4).numpy())
    assert to_torch(out, dtype).isnan().all() and np.isnan(score).all()


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize(("template", "tokens"), [(64, 320), (64, 153), (1, 1), (7, 20), (65, 131)])
def test_two_groups(kernels, dtype, template, tokens):
    """Also where the second group has a tile less than the first, or none; of one chosen row and of several."""
    qkv = make_qkv(1, tokens, 2, 64, dtype)
    for mask in (rows(template, 0, template - 1), rows(template, template // 2)):
        check(kernels, qkv, mask, groups=2)


def test_two_groups_without_a_score(kernels):
    check(kernels, make_qkv(2, 190, 1, 64, torch.float16), None, groups=2)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_a_row_chosen_alone_scores_as_among_several(kernels, dtype, groups):
    """The logits that were kept are those that a second look gives: two rows of one query score as one of them."""
    qkv = make_qkv(1, 153, 3, 64, dtype)
    qkv[0, 30, 0] = qkv[0, 27, 0]
    alone = kernels.attention(to_numpy(qkv), rows(64, 27).numpy(), groups=groups)[1]
    twice = kernels.attention(to_numpy(qkv), rows(64, 27, 30).numpy(), groups=groups)[1]
    np.testing.assert_array_equal(alone, twice)


def test_more_keys_than_are_kept(kernels):
    check(kernels, make_qkv(1, 1060, 1, 32, torch.float16), rows(40, 27))


def test_two_groups_only_where_they_fit(kernels):
    for width, dtype, groups in (
        (32, torch.float16, 2),
        (96, torch.float16, 2),
        (64, torch.float32, 2),
        (64, torch.float16, 3),
    ):
        with pytest.raises(EmulationError) as error:
            kernels.attention(to_numpy(make_qkv(1, 10, 1, width, dtype)), groups=groups)
        assert error.value.code == EINVAL


@pytest.mark.parametrize("groups", [1, 2])
def test_rows_alone_in_every_schedule(kernels, groups):
    qkv, mask = to_numpy(make_qkv(2, 150, 2, 64, torch.float16)), rows(70, 66).numpy()
    expected = kernels.attention(qkv, mask, groups=groups)
    for seed, order in enumerate(ORDERS):
        kernels.configure(order, COPIES[seed % len(COPIES)], seed)
        for ours, theirs in zip(kernels.attention(qkv, mask, groups=groups), expected, strict=True):
            assert ours.tobytes() == theirs.tobytes(), order
    kernels.configure()


def test_turing_in_two_groups(turing):
    check(turing, make_qkv(1, 131, 2, 64, torch.float16), rows(65, 0, 64), groups=2)


@pytest.mark.parametrize("width", [32, 64, 96, 128])
@pytest.mark.parametrize("template", [1, 65])
def test_turing(turing, width, template):
    check(turing, make_qkv(1, 131, 2, width, torch.float16), rows(template, 0, template - 1))


def test_turing_float32(turing):
    check(turing, make_qkv(1, 100, 1, 64, torch.float32), rows(33, 0, 32))


def test_turing_has_no_bfloat16(turing):
    with pytest.raises(EmulationError) as error:
        turing.attention(to_numpy(make_qkv(1, 10, 1, 64, torch.bfloat16)))
    assert error.value.code == EDTYPE


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_in_every_schedule(kernels, dtype):
    """Whatever order blocks and threads run in, and whenever copies land; also without the optional outputs."""
    qkv, mask = to_numpy(make_qkv(2, 150, 2, 32, dtype)), rows(70, 1, 66).numpy()
    expected = kernels.attention(qkv, mask)
    arrivals = np.zeros(2, np.int32)  # one array for all launches, as a replayed graph has
    for seed, order in enumerate(ORDERS):
        for copies in COPIES:
            kernels.configure(order, copies, seed)
            for ours, theirs in zip(kernels.attention(qkv, mask, arrivals=arrivals), expected, strict=True):
                assert ours.tobytes() == theirs.tobytes(), (order, copies)
    kernels.configure()
    assert kernels.attention(qkv, with_lse=False)[0].tobytes() == expected[0].tobytes()


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16), ids=str)
@pytest.mark.parametrize("width", [32, 64, 96, 128])
def test_no_bank_conflicts(kernels, width, dtype):
    kernels.counts()
    kernels.attention(to_numpy(make_qkv(1, 150, 1, width, dtype)), rows(64, 27).numpy())
    counts = kernels.counts()
    assert counts["mma"] > 0 and counts["phases"] > 0
    assert counts["conflicts"] == 0


@pytest.mark.parametrize(
    "change",
    [{"width": 48}, {"template": 11}, {"template": 0}, {"mask": 3}, {"dtype": np.float64}],
    ids=["head dimension", "template longer than tokens", "mask without template", "score of another size", "dtype"],
)
def test_refusals(kernels, change):
    qkv = make_qkv(1, 10, 1, change.get("width", 32), torch.float32).numpy().astype(change.get("dtype", np.float32))
    template = change.get("template", 4)
    with pytest.raises(EmulationError) as error:
        kernels.attention(qkv, np.ones(change.get("mask", template), np.bool_), template)
    assert error.value.code == (EDTYPE if "dtype" in change else EINVAL)


def test_refuses_misaligned_arrays(kernels):
    raw = np.zeros(10 * 3 * 32 * 4 + 16, np.uint8)
    start = -raw.ctypes.data % 16 + 4
    qkv = raw[start : start + 10 * 3 * 32 * 4].view(np.float32).reshape(1, 10, 3, 1, 32)
    with pytest.raises(EmulationError) as error:
        kernels.attention(qkv)
    assert error.value.code == EINVAL
