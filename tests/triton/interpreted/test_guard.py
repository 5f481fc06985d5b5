"""The tools themselves: the guard finds planted bugs and accepts correct code, bfloat16 behaves as on a GPU."""

import interpreter_repair
import pytest
import torch
import triton
import triton.language as tl
from race_guard import guard
from triton.runtime.errors import InterpreterError


@triton.jit
def _copy(source, target, N, SLACK: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + at, tl.load(source + at, mask=at < N + SLACK, other=0.0), mask=at < N)


@triton.jit
def _store_one(source, target):
    tl.store(target, tl.load(source + tl.program_id(0)))


@triton.jit
def _accumulate(source, target, ATOMIC: tl.constexpr):
    value = tl.load(source + tl.program_id(0))
    if ATOMIC:
        tl.atomic_add(target, value)
    else:
        tl.store(target, tl.load(target) + value)


@triton.jit
def _last_one_sums(source, partial, tickets, target, SEMANTICS: tl.constexpr, PROGRAMS: tl.constexpr):
    program = tl.program_id(0)
    tl.store(partial + program, tl.load(source + program))
    if tl.atomic_add(tickets, 1, sem=SEMANTICS) == PROGRAMS - 1:
        tl.store(target, tl.sum(tl.load(partial + tl.arange(0, PROGRAMS)), axis=0))


@triton.jit
def _two_lanes_one_element(target):
    tl.store(target + tl.arange(0, 4) // 2, tl.arange(0, 4).to(tl.float32))


@triton.jit
def _read_own_input_after_a_neighbour_wrote_it(data):
    program = tl.program_id(0)
    tl.store(data + program, tl.load(data + (program + 1) % 4))


def caught(message: str):
    return pytest.raises(InterpreterError, match=message)


def test_off_by_one_mask_reading_a_neighbouring_tensor():
    storage = torch.randn(64)
    source, target = storage[:40], torch.empty(40)
    _copy[(2,)](source, target, 40, SLACK=1, BLOCK=32)  # the stock interpreter sees nothing
    with caught("load outside the view"), guard():
        _copy[(2,)](source, target, 40, SLACK=1, BLOCK=32)
    with guard():
        _copy[(2,)](source, target, 40, SLACK=0, BLOCK=32)
    assert torch.equal(source, target)


def test_read_past_the_end_of_a_storage():
    with caught("load outside every tensor"), guard():
        _copy[(2,)](torch.randn(40), torch.empty(40), 40, SLACK=1, BLOCK=32)


def test_two_programs_storing_one_address():
    with caught("race: store"), guard():
        _store_one[(4,)](torch.randn(4), torch.zeros(1))
    with guard():
        _store_one[(1,)](torch.randn(4), torch.zeros(1))


def test_accumulation_without_atomics():
    with caught("race: load"), guard():
        _accumulate[(4,)](torch.randn(4), torch.zeros(1), ATOMIC=False)
    with guard():
        _accumulate[(4,)](torch.randn(4), torch.zeros(1), ATOMIC=True)


def test_write_after_a_read_of_another_program():
    for seed in range(3):
        with caught("race"), guard(seed):
            _read_own_input_after_a_neighbour_wrote_it[(4,)](torch.randn(4))


def test_two_lanes_of_one_program_storing_one_address():
    with caught("two lanes"), guard():
        _two_lanes_one_element[(1,)](torch.empty(2))


@pytest.mark.parametrize("semantics", ["relaxed", "acquire", "release"])
def test_a_ticket_too_weak_to_order_the_partial_sums(semantics):
    arguments = torch.randn(8), torch.empty(8), torch.zeros(1, dtype=torch.int32), torch.empty(1)
    with caught("race: load"), guard():
        _last_one_sums[(8,)](*arguments, SEMANTICS=semantics, PROGRAMS=8)


def test_a_ticket_with_acquire_and_release_orders_them():
    source, target = torch.arange(8.0), torch.empty(1)
    for seed in range(5):
        with guard(seed):
            _last_one_sums[(8,)](
                source, torch.empty(8), torch.zeros(1, dtype=torch.int32), target, SEMANTICS="acq_rel", PROGRAMS=8
            )
        assert target.item() == 28


@triton.jit
def _program_order(counter, order):
    tl.store(order + tl.program_id(0), tl.atomic_add(counter, 1))


def test_programs_run_in_an_order_that_depends_on_the_seed():
    orders = []
    for seed in (1, 1, 2):
        order = torch.empty(16, dtype=torch.int32)
        with guard(seed):
            _program_order[(16,)](torch.zeros(1, dtype=torch.int32), order)
        orders.append(order.tolist())
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[2]) == list(range(16)) != orders[2]


@triton.jit
def _cast(source, target, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(target + at, tl.load(source + at).to(target.dtype.element_ty))


@triton.jit
def _matrix_product(a, b, c, SIDE: tl.constexpr):
    at = tl.arange(0, SIDE)[:, None] * SIDE + tl.arange(0, SIDE)[None, :]
    tl.store(c + at, tl.dot(tl.load(a + at), tl.load(b + at)))


@triton.jit
def _double(x, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(x + at, tl.load(x + at) + tl.load(x + at))


@triton.jit
def _times(x, factor, exact: tl.float64):
    tl.store(x, factor)
    tl.store(x + 1, exact)


@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
def test_bfloat16_casts_round_to_nearest_even():
    bits = torch.randint(-(2**31), 2**31, (4096,), generator=torch.Generator().manual_seed(0)).to(torch.int32)
    source = bits.view(torch.float32)
    source[:4] = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, float("inf"), float("nan")])
    target = torch.empty(4096, dtype=torch.bfloat16)
    _cast[(1,)](source, target, BLOCK=4096)
    assert torch.allclose(target, source.bfloat16(), rtol=0, atol=0, equal_nan=True)
    back = torch.empty(4096)
    _cast[(1,)](target, back, BLOCK=4096)
    assert torch.allclose(back, target.float(), rtol=0, atol=0, equal_nan=True)
    half = torch.empty(4096, dtype=torch.float16)
    _cast[(1,)](target, half, BLOCK=4096)
    assert torch.allclose(half, target.half(), rtol=0, atol=0, equal_nan=True)


def test_bfloat16_products_and_refused_arithmetic():
    a, b = (torch.randn(16, 16, generator=torch.Generator().manual_seed(seed)).bfloat16() for seed in (0, 1))
    c = torch.empty(16, 16)
    _matrix_product[(1,)](a, b, c, SIDE=16)
    assert torch.allclose(c, a.float() @ b.float(), atol=1e-5)
    with caught("convert to float32"):
        _double[(1,)](a, BLOCK=16)


def test_float_arguments_are_float32_unless_declared():
    x = torch.empty(2, dtype=torch.float64)
    _times[(1,)](x, 0.1, 0.1)
    assert x.tolist() == [torch.tensor(0.1).item(), 0.1]


def test_masked_lanes_without_other_are_poison():
    assert interpreter_repair.Builder.create_masked_load.__module__ == "interpreter_repair"
    target = torch.zeros(32)
    _sum_of_masked_load[(1,)](torch.ones(32), target, BLOCK=32)
    assert target[0].isnan()


@triton.jit
def _sum_of_masked_load(source, target, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(target, tl.sum(tl.load(source + at, mask=at < 3), axis=0))
