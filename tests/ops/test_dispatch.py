"""Which backend a call goes to, and that remembering the choice changes nothing."""

import pytest
import torch

from ostrack_fast import ops
from ostrack_fast.ops import dispatch, native, reference


def qkv(dtype=torch.float32):
    return torch.randn(1, 4, 3, 2, 8, generator=torch.Generator().manual_seed(0)).to(dtype)


def calls(monkeypatch):
    """The backends that run attention from here on."""
    seen = []
    for module in (native, reference):
        stock = module.attention
        name = module.__name__.rpartition(".")[2]
        monkeypatch.setattr(module, "attention", lambda *a, name=name, stock=stock: seen.append(name) or stock(*a))
    dispatch._remembered.clear()
    return seen


@pytest.fixture(autouse=True)
def forget():
    yield
    dispatch._remembered.clear()


def test_every_circumstance_of_a_call_counts(monkeypatch):
    seen = calls(monkeypatch)
    monkeypatch.delenv("OSTRACK_FAST_BACKEND", raising=False)
    for _ in range(2):
        ops.attention(qkv())
        ops.attention(qkv(torch.float64))
        ops.attention(qkv().requires_grad_())
        with torch.no_grad():
            ops.attention(qkv().requires_grad_())
        with ops.use("reference"):
            ops.attention(qkv())
        monkeypatch.setenv("OSTRACK_FAST_BACKEND", "reference")
        ops.attention(qkv())
        with ops.use("auto"):
            ops.attention(qkv())
        monkeypatch.delenv("OSTRACK_FAST_BACKEND")
        assert seen == ["native", "reference", "reference", "native", "reference", "reference", "native"]
        seen.clear()


def test_a_call_like_a_wrong_one_is_checked_again():
    for _ in range(2):
        with pytest.raises(ValueError, match="qkv must be"):
            ops.attention(torch.zeros(1, 4, 2, 2, 8))
        with ops.use("native"), pytest.raises(RuntimeError, match="float64"):
            ops.attention(qkv(torch.float64))


def test_memory_has_an_end(monkeypatch):
    monkeypatch.setattr(dispatch, "_MEMORY", 3)
    for tokens in range(1, 12):
        ops.attention(torch.zeros(1, tokens, 3, 1, 8))
        assert len(dispatch._remembered) <= 3


def test_unknown_backends_are_named(monkeypatch):
    with pytest.raises(ValueError, match="unknown backend 'cuda'"), ops.use("cuda"):
        pass
    monkeypatch.setenv("OSTRACK_FAST_BACKEND", "tritn")
    with pytest.raises(ValueError, match="unknown backend 'tritn': choose native, triton, reference or auto"):
        ops.attention(qkv())


def test_exceptions_come_before_the_order(monkeypatch):
    def large(arguments):
        return arguments["qkv"].shape[0] > 1

    rule = dispatch._Exception("attention", "cpu", large, ("reference", "native"))
    monkeypatch.setattr(dispatch, "_EXCEPTIONS", (rule,))
    one, two = ({"qkv": torch.zeros(batch, 4, 3, 1, 8), "template_mask": None} for batch in (1, 2))
    assert dispatch.choose("attention", one) == "native"
    assert dispatch.choose("attention", two) == "reference"
    assert dispatch.order("decode", one) == ("native", "reference")
    with ops.use("native"):
        assert dispatch.choose("attention", two) == "native"


def test_every_exception_names_what_exists():
    for exception in dispatch._EXCEPTIONS:
        assert exception.op in (*dispatch.OPS, *dispatch.LAYERS)
        assert exception.device in dispatch._ORDER
        assert sorted(exception.order) == sorted(dispatch._ORDER[exception.device])


@pytest.mark.parametrize(("op", "weight"), [("linear", (16, 8)), ("conv3x3", (16, 8, 3, 3))])
def test_layers_are_classes(op, weight):
    arguments = {"weight": torch.zeros(weight), "bias": torch.zeros(16), "dtype": torch.float32}
    with ops.use("reference"):
        assert dispatch.select(op, arguments) is getattr(reference, dispatch.LAYERS[op])


def test_the_report_has_a_row_for_every_op_and_a_reason_for_every_other_backend():
    rows = ops.report()
    assert [row[0] for row in rows if row[1] == "cpu"] == [*dispatch.OPS, *dispatch.LAYERS]
    for _, _, chosen, others in rows:
        assert sorted([chosen, *(name for name, _ in others)]) == sorted(dispatch.BACKENDS)
        assert all(reason for _, reason in others)
