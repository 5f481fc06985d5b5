"""What callers get wrong, in every backend: a clear error or the right answer, never silence.

`tests/triton/interpreted/test_interpreted_bad_inputs.py` runs the same tests on Triton's interpreter.
"""

import pytest
import torch

from ostrack_fast import ops
from ostrack_fast.ops import reference

NAN, INF = float("nan"), float("inf")


@pytest.fixture(params=["reference", "native"])
def backend(request):
    with ops.use(request.param):
        yield request.param


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def places(batch, kept, grid):
    generator = torch.Generator().manual_seed(0)
    return torch.stack([torch.randperm(grid * grid, generator=generator)[:kept] for _ in range(batch)])


MASK = torch.tensor([False, True, True])
FRAME = torch.randint(0, 256, (12, 14, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def good(op, batch=2, dtype=torch.float32):
    """Arguments that every backend takes; `dtype` for those that have a choice."""
    if op == "attention":
        return {"qkv": random(batch, 9, 3, 2, 32, dtype=dtype), "template_mask": MASK}
    if op == "eliminate":
        ids = torch.arange(10, 16).expand(batch, -1)
        return {"tokens": random(batch, 8, 4, dtype=dtype), "score": random(batch, 6), "ids": ids, "keep": 4}
    if op == "restore":
        return {"tokens": random(batch, 5, 4, dtype=dtype), "ids": places(2, 5, 3)[:batch], "grid": 3}
    if op == "crop":
        box = torch.tensor([[2.0, 3.0, 4.0, 5.0], [7.5, 1.5, 3.0, 2.0]], dtype=torch.float64)[:batch]
        return {"frame": FRAME, "box": box, "factor": 2.0, "size": 6}
    score, size, offset = (random(batch, n, 4, 4, dtype=dtype, seed=i) for i, n in enumerate((1, 2, 2)))
    return {"score_map": score, "size_map": size, "offset_map": offset, "window": random(4, 4).abs() + 0.1}


OPS = ["attention", "eliminate", "restore", "crop", "decode"]


def run(op, **changes):
    answer = getattr(ops, op)(**{**good(op), **changes})
    return answer if isinstance(answer, tuple) else (answer,)


def by_reference(op, **arguments):
    answer = getattr(reference, op)(**arguments)
    return answer if isinstance(answer, tuple) else (answer,)


def assert_equal(got, expected):
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, equal_nan=True)


def loosened(tensor):
    """The same values, but neither contiguous nor at the start of their memory."""
    turned = tensor.transpose(0, -1).contiguous().transpose(0, -1) if tensor.dim() > 1 else tensor
    wide = torch.stack((torch.zeros_like(turned), turned), dim=-1)[..., 1]
    assert not wide.is_contiguous() and wide.storage_offset()
    return wide


@pytest.mark.parametrize("op", OPS)
def test_strides(backend, op):
    arguments = good(op)
    loose = {name: loosened(v) if isinstance(v, torch.Tensor) else v for name, v in arguments.items()}
    assert_equal(run(op, **loose), run(op))


@pytest.mark.parametrize("op", OPS)
def test_what_is_no_dense_tensor(backend, op):
    first, value = next(iter(good(op).items()))
    with pytest.raises(TypeError, match=f"{op}: {first} must be a tensor, is None"):
        run(op, **{first: None})
    with pytest.raises(ValueError, match=f"{op}: {first} is torch.sparse_coo: give it as {first}.to_dense"):
        run(op, **{first: value.to_sparse()})


@pytest.mark.parametrize("op", OPS)
def test_a_bound_op_refuses_what_the_public_one_does(op, backend):
    """An engine calls ops that were bound to a backend when it was built."""
    declaration = ops.OPS[op]
    arguments = declaration.complete((), good(op))
    bound = declaration.bind(*arguments)
    assert bound.backend == backend
    first, value = next(iter(declaration.parameters)), arguments[0]
    with pytest.raises(TypeError, match=f"{op}: {first} must be a tensor, is None"):
        bound(None, *arguments[1:])
    with pytest.raises(ValueError, match=f"{op}: {first} is torch.sparse_coo: give it as {first}.to_dense"):
        bound(value.to_sparse(), *arguments[1:])
    bound(*arguments)


@pytest.mark.parametrize("op", OPS)
def test_tensors_in_inference_mode_and_out_of_it(backend, op):
    expected = run(op)
    with torch.inference_mode():
        assert_equal(run(op), expected)


@pytest.mark.parametrize("op", OPS)
def test_an_empty_batch(backend, op):
    arguments = good(op, batch=0)
    if backend == "triton":  # CUDA has no launch of no programs; the automatic choice takes another backend
        with pytest.raises(RuntimeError, match="batch of 1"):
            getattr(ops, op)(**arguments)
        return
    answer = getattr(ops, op)(**arguments)
    shapes = {
        "attention": [(0, 9, 64), (0, 6)],
        "eliminate": [(0, 6, 4), (0, 4), (0, 2)],
        "restore": [(0, 4, 3, 3)],
        "crop": [(0, 3, 6, 6), (0,)],
        "decode": [(0, 4), (0,)],
    }
    assert [tuple(a.shape) for a in (answer if isinstance(answer, tuple) else (answer,))] == shapes[op]


@pytest.mark.parametrize("op", OPS)
def test_tensors_on_two_devices(backend, op):
    tensors = [name for name, value in good(op).items() if isinstance(value, torch.Tensor)]
    for name in tensors[1:]:
        with pytest.raises(ValueError, match="one device"):
            run(op, **{name: good(op)[name].to("meta")})


@pytest.mark.parametrize("op", OPS)
def test_all_on_a_device_without_numbers(backend, op):
    """Meta tensors give meta tensors of the right shape."""
    meta = {name: v.to("meta") if isinstance(v, torch.Tensor) else v for name, v in good(op).items()}
    for one, other in zip(run(op, **meta), run(op), strict=True):
        assert one.is_meta and (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())


@pytest.mark.parametrize("op", ["attention", "eliminate", "restore", "decode"])
def test_float64(backend, op):
    """Right to the last bit but a few, or refused with the reason: never computed in less."""
    arguments = good(op, dtype=torch.float64)
    refused = {"native": ("attention", "decode"), "triton": ("attention", "decode"), "reference": ()}
    if op in refused[backend]:
        with pytest.raises(RuntimeError, match=f"backend '{backend}' was asked for, but cannot run {op}.*float"):
            getattr(ops, op)(**arguments)
    with ops.use("auto" if op in refused[backend] else backend):
        answer = run(op, **arguments)
    assert answer[0].dtype == torch.float64
    for one, other in zip(answer, by_reference(op, **arguments), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("op", ["attention", "eliminate", "restore", "decode"])
@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.complex64], ids=str)
def test_tensors_that_are_no_floats(backend, op, dtype):
    first = next(iter(good(op)))
    with pytest.raises(ValueError, match="float"):
        run(op, **{first: good(op)[first].to(dtype)})


# attention


@pytest.mark.parametrize(
    "mask",
    [
        torch.ones(10, dtype=torch.bool),
        torch.ones(0, dtype=torch.bool),
        torch.ones((), dtype=torch.bool),
        torch.ones(3, 3, dtype=torch.bool),
        torch.ones(2, 1, 3, dtype=torch.bool),
        torch.ones(3),
    ],
    ids=["longer than N", "empty", "no dimension", "other batch", "three dimensions", "float"],
)
def test_masks_that_do_not_fit(backend, mask):
    with pytest.raises(ValueError, match="template_mask must be bool"):
        run("attention", template_mask=mask)


@pytest.mark.parametrize("mask", [torch.zeros(3, dtype=torch.bool), torch.stack((MASK, MASK & False))])
def test_masks_that_choose_nothing(backend, mask):
    with pytest.raises(ValueError, match="chooses no row"):
        run("attention", template_mask=mask)


@pytest.mark.parametrize(
    "shape", [(2, 0, 3, 2, 32), (2, 9, 3, 0, 32), (2, 9, 3, 2, 0), (2, 9, 4, 2, 32), (2, 9, 3, 64)]
)
def test_qkv_that_is_none(backend, shape):
    with pytest.raises(ValueError, match="qkv must be a float tensor"):
        run("attention", qkv=torch.zeros(shape), template_mask=None)


def test_a_mask_of_every_token_leaves_no_candidate(backend):
    out, score = run("attention", template_mask=torch.ones(9, dtype=torch.bool))
    assert score.shape == (2, 0)
    torch.testing.assert_close(out, run("attention", template_mask=None)[0])


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("value", [NAN, INF])
def test_rows_that_do_not_score_cannot_spoil_the_score(backend, value):
    qkv = good("attention")["qkv"]
    clean = run("attention")[1]
    qkv[:, 0, 0] = value  # a template query that is not chosen
    out, score = run("attention", qkv=qkv)
    torch.testing.assert_close(score, clean)
    assert out[:, 0].isnan().all() and out[:, 1:].isfinite().all()
    qkv[1, 1, 0] = value
    score = run("attention", qkv=qkv)[1]
    torch.testing.assert_close(score[0], clean[0])
    assert score[1].isnan().all()


# eliminate


@pytest.mark.parametrize("keep", [0, -1, 7])
def test_keep_out_of_range(backend, keep):
    with pytest.raises(ValueError, match=rf"keep={keep} must lie in \[1, 6\]"):
        run("eliminate", keep=keep)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score": random(2, 9)}, "needed"),
        ({"score": random(3, 6)}, "needed"),
        ({"score": random(2, 6, 1)}, "needed"),
        ({"tokens": random(2, 32)}, "needed"),
        ({"ids": torch.arange(6)}, "ids must be int64"),
        ({"ids": torch.arange(6, dtype=torch.int32).expand(2, -1)}, "ids must be int64"),
        ({"score": torch.zeros(2, 6, dtype=torch.int64)}, "float"),
        ({"tokens": torch.zeros(2, 8, 0)}, "float"),
        ({"score": random(2, 0), "ids": torch.zeros(2, 0, dtype=torch.int64)}, "keep=4"),
    ],
)
def test_candidates_that_do_not_fit(backend, changes, message):
    with pytest.raises(ValueError, match=message):
        run("eliminate", **changes)


@pytest.mark.parametrize("other", [0.0, INF, -INF])
def test_a_score_of_nan(backend, other):
    score = good("eliminate")["score"]
    score[1, 2:4] = torch.tensor([NAN, other])
    with pytest.raises(ValueError, match="score holds NaN"):
        run("eliminate", score=score)


def test_infinite_scores_are_ranked(backend):
    score = torch.tensor([[0.0, -INF, INF, -0.0, INF, 1.0]]).expand(2, -1)
    _, ids, removed = run("eliminate", score=score)
    assert ids.tolist() == [[12, 14, 15, 10]] * 2
    assert removed.tolist() == [[13, 11]] * 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_scores_of_another_precision(backend, dtype):
    score = good("eliminate")["score"].to(dtype)
    if backend != "reference":
        with pytest.raises(RuntimeError, match="score must be float32"):
            run("eliminate", score=score)
    with ops.use("auto"):
        assert_equal(run("eliminate", score=score), by_reference("eliminate", **(good("eliminate") | {"score": score})))


# restore


@pytest.mark.parametrize("place", [-1, 9, 2**40, -(2**40)])
def test_places_off_the_grid(backend, place):
    ids = places(2, 5, 3)
    ids[1, 3] = place
    for channels_last in (False, True):
        with pytest.raises(ValueError, match=r"ids must lie in \[0, 9\)"):
            run("restore", ids=ids, channels_last=channels_last)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": 2}, "do not fit a grid of 2 x 2"),
        ({"grid": 0}, "do not fit a grid of 0 x 0"),
        ({"grid": -3}, "do not fit a grid of -3 x -3"),
        ({"ids": places(2, 4, 3)}, "int64 ids"),
        ({"ids": places(2, 5, 3).int()}, "int64 ids"),
        ({"tokens": random(2, 5)}, "int64 ids"),
        ({"dtype": torch.int8}, "must be float"),
        ({"norm_weight": torch.ones(4)}, "or neither"),
        ({"norm_bias": torch.ones(4)}, "or neither"),
        ({"norm_weight": torch.ones(4), "norm_bias": torch.ones(5)}, "norm_bias must be float"),
        ({"norm_weight": torch.ones(4).int(), "norm_bias": torch.ones(4)}, "norm_weight must be float"),
        ({"eps": -1e-6}, "eps"),
        ({"eps": NAN}, "eps"),
    ],
)
def test_maps_that_cannot_be_made(backend, changes, message):
    with pytest.raises(ValueError, match=message):
        run("restore", **changes)


def test_no_token_left(backend):
    nothing = {"tokens": torch.zeros(2, 0, 4), "ids": torch.zeros(2, 0, dtype=torch.int64)}
    if backend == "triton":
        with pytest.raises(RuntimeError, match="tokens of 1 to 9"):
            run("restore", **nothing)
        return
    assert torch.equal(run("restore", **nothing)[0], torch.zeros(2, 4, 3, 3))


# crop


@pytest.mark.parametrize("shape", [(0, 8, 3), (8, 0, 3), (8, 8, 4), (8, 8), (3, 8, 8)])
def test_frames_that_are_none(backend, shape):
    with pytest.raises(ValueError, match="frame must be uint8"):
        run("crop", frame=torch.zeros(shape, dtype=torch.uint8))


def test_a_frame_of_floats(backend):
    with pytest.raises(ValueError, match="frame must be uint8"):
        run("crop", frame=FRAME / 255)


@pytest.mark.parametrize("at", range(4))
@pytest.mark.parametrize("value", [NAN, INF, -INF, 1e300])
def test_boxes_that_are_not_finite(backend, value, at):
    box = good("crop")["box"]
    box[1, at] = value
    with pytest.raises(ValueError, match="each box must be finite"):
        run("crop", box=box)


@pytest.mark.parametrize("extent", [(0, 5), (5, 0), (-3, -3), (1e-200, 1e-200), (2.0**28, 2.0**28)])
def test_boxes_without_a_crop(backend, extent):
    with pytest.raises(ValueError, match="positive width and height"):
        run("crop", box=torch.tensor([[1.0, 1.0, *extent]], dtype=torch.float64))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"box": torch.ones(1, 4)}, "box must be float64"),
        ({"box": torch.ones(4, dtype=torch.float64)}, "box must be float64"),
        ({"factor": 0.0}, "positive"),
        ({"factor": -1.0}, "positive"),
        ({"factor": NAN}, "positive"),
        ({"factor": INF}, "positive"),
        ({"size": 0}, "positive"),
        ({"dtype": torch.uint8}, "float"),
    ],
)
def test_crops_that_cannot_be_made(backend, changes, message):
    with pytest.raises(ValueError, match=message):
        run("crop", **changes)


def test_a_frame_of_one_pixel_is_all_border(backend):
    """Its only row and column are the last."""
    patch, _ = run("crop", frame=FRAME[:1, :1])
    assert_equal([patch], [run("crop", frame=FRAME * 0)[0]])


# decode


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score_map": random(2, 2, 4, 4)}, "maps"),
        ({"score_map": random(2, 1, 4, 5)}, "maps"),
        ({"score_map": random(2, 4, 4)}, "maps"),
        ({"score_map": random(2, 1, 0, 0)}, "maps"),
        ({"size_map": random(2, 1, 4, 4)}, "maps"),
        ({"size_map": random(1, 2, 4, 4)}, "maps"),
        ({"offset_map": random(2, 2, 5, 5)}, "maps"),
        ({"window": torch.ones(5, 5)}, "window must be"),
        ({"window": torch.ones(4)}, "window must be"),
    ],
)
def test_maps_that_do_not_fit(backend, changes, message):
    with pytest.raises(ValueError, match=message):
        run("decode", **changes)


@pytest.mark.filterwarnings("ignore:All-NaN:RuntimeWarning")
@pytest.mark.parametrize(
    ("holes", "value", "best"), [([0, 1], 0.3, 3), ([3], 0.3, 2), (range(4), NAN, 0), ([0, 1, 3], -INF, 2)]
)
def test_nan_scores_are_below_everything(backend, holes, value, best):
    score = torch.tensor([0.1, 0.2, 0.25, 0.3]).view(1, 1, 2, 2)
    score.view(-1)[list(holes)] = NAN
    if value == -INF:
        score.view(-1)[2] = -INF
    size = torch.arange(8.0).view(1, 2, 2, 2)
    box, found = ops.decode(score, size, torch.zeros(1, 2, 2, 2))
    assert box[0, 2:].tolist() == [best, best + 4]
    assert str(found.item()) == str(score.view(-1)[best].item())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_maps_give_boxes_in_full_precision(backend, dtype):
    arguments = good("decode", dtype=dtype)
    box, score = run("decode", **arguments)
    exact = by_reference("decode", **{name: value.double() for name, value in arguments.items()})
    assert box.dtype == score.dtype == torch.float32
    torch.testing.assert_close(box.double(), exact[0], rtol=1e-6, atol=1e-7)
    assert torch.equal(score.double(), exact[1])


def test_maps_of_several_precisions(backend):
    half = good("decode")["size_map"].half()
    if backend == "native":
        with pytest.raises(RuntimeError, match="one dtype"):
            run("decode", size_map=half)
    with ops.use("auto" if backend == "native" else backend):
        assert_equal(run("decode", size_map=half), run("decode", size_map=half.float()))


WRONG = [None, "x", 3, 2.5, [1.0], torch.float32]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_what_is_no_tensor_is_a_type_error_that_says_what_is_needed(wrong):
    x, weight, bias = random(2, 4).requires_grad_(), random(3, 4), random(3)
    for function, arguments in (
        (ops.gelu, [x]), (ops.linear, [x, weight, bias]), (ops.gelu_linear, [x, weight, bias]),
        (ops.matmul, [x, weight.t()]), (ops.update_box, [random(1, 4), random(1, 4).double(), (9, 9), 2.0, 1.0]),
        *((getattr(ops, op), list(good(op).values())) for op in OPS),
    ):  # fmt: skip
        for index in (index for index, one in enumerate(arguments) if isinstance(one, torch.Tensor)):
            changed = [*arguments[:index], wrong, *arguments[index + 1 :]]
            if wrong is None and (function, index) in {
                (ops.attention, 1), (ops.decode, 3), (ops.linear, 2), (ops.gelu_linear, 2)
            }:  # fmt: skip
                continue  # tensors that may be left out
            with pytest.raises(TypeError, match=r"must be (an? )?(Optional\[)?[Tt]ensor"):
                function(*changed)


def test_numbers_and_dtypes_of_another_type_are_named():
    with pytest.raises(TypeError, match="eliminate: keep must be int, is float"):
        run("eliminate", keep=2.5)
    with pytest.raises(TypeError, match=r"crop: dtype must be torch\.dtype, is str"):
        run("crop", dtype="float32")
