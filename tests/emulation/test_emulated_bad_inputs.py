"""What the CUDA kernels do with values that no check looked at, because looking would wait for the GPU."""

import numpy as np
import pytest
from c_abi import EINVAL, view
from emulator import EmulationError

NAN, INF = np.nan, np.inf


def random(*shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_an_empty_batch(kernels):
    out, score, _ = kernels.attention(random(0, 9, 3, 2, 32), np.ones(3, np.uint8))
    assert out.shape == (0, 9, 64) and score.shape == (0, 6)
    assert kernels.decode(*(random(0, n, 4, 4) for n in (1, 2, 2)))[0].shape == (0, 4)
    patch, _ = kernels.crop(np.zeros((4, 4, 3), np.uint8), np.zeros((0, 4)), 2.0, 8, [0] * 3, [1] * 3)
    assert patch.shape == (0, 3, 8, 8)


@pytest.mark.parametrize("place", [-1, 9, 2**40, -(2**40)])
def test_tokens_off_the_grid_go_nowhere(kernels, place):
    tokens, ids = random(2, 4, 6), np.array([[0, 5, place, 3], [8, 7, 6, 5]])
    on_grid = np.ascontiguousarray(tokens[:1, [0, 1, 3]]), np.array([[0, 5, 3]])
    expected = np.concatenate((kernels.restore(*on_grid, 3), kernels.restore(tokens[1:], ids[1:], 3)))
    np.testing.assert_array_equal(kernels.restore(tokens, ids, 3), expected)


@pytest.mark.parametrize(("holes", "best"), [([0, 1], 3), ([3], 2), (range(4), 0)])
def test_nan_scores_are_below_everything(kernels, holes, best):
    score = np.array([0.1, 0.2, 0.25, 0.3], np.float32)
    score[list(holes)] = NAN
    size = np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2)
    for window in (None, np.ones((2, 2), np.float32)):
        box, found = kernels.decode(score.reshape(1, 1, 2, 2), size, np.zeros((1, 2, 2, 2), np.float32), window)
        assert box[0, 2:].tolist() == [best, best + 4]
        np.testing.assert_array_equal(found, score[[best]])


def test_nan_is_below_minus_infinity(kernels):
    score = np.array([NAN, -INF, NAN, NAN], np.float32).reshape(1, 1, 2, 2)
    size = np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2)
    assert kernels.decode(score, size, size)[0][0, 2:].tolist() == [1, 5]
    order = kernels.eliminate(random(1, 4, 3), score.reshape(1, 4), np.arange(4)[None], 2)
    assert order[1].tolist() == [[1, 0]] and order[2].tolist() == [[2, 3]]


@pytest.mark.parametrize("keep", [-1, 5])
def test_keep_out_of_range_is_refused(kernels, keep):
    numbers = np.zeros(8, np.int64)
    results = [view(random(1, 8, 3), (1, keep, 3)), view(numbers, (1, keep)), view(numbers, (1, 4 - keep))]
    with pytest.raises(EmulationError) as error:
        kernels.call("ostf_cuda_eliminate", random(1, 4, 3), random(1, 4), np.arange(4)[None], *results, None)
    assert error.value.code == EINVAL
