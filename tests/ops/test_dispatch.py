"""Which backend a call goes to, when that is chosen, and what the report says of it."""

import pickle

import pytest
import torch

from ostrack_fast import ops
from ostrack_fast.ops.registry import Backend, Preference

ATTENTION = ops.OPS["attention"]


def qkv(dtype=torch.float32, batch=1):
    return torch.randn(batch, 4, 3, 2, 8, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.fixture
def seen(monkeypatch):
    """The backends that run attention from here on."""
    ran = []
    for name in ("native", "reference"):
        stock = ATTENTION.backends[name]
        run = lambda *a, name=name, stock=stock: ran.append(name) or stock.run(*a)  # noqa: E731
        monkeypatch.setitem(ATTENTION.backends, name, Backend(run, stock.unless))
    return ran


def test_every_circumstance_of_a_call_counts(seen, monkeypatch):
    monkeypatch.delenv("OSTRACK_FAST_BACKEND", raising=False)
    ops.attention(qkv())
    ops.attention(qkv(torch.float64))
    ops.attention(qkv().requires_grad_())
    with ops.use("reference"):
        ops.attention(qkv())
    monkeypatch.setenv("OSTRACK_FAST_BACKEND", "reference")
    ops.attention(qkv())
    with ops.use("auto"):
        ops.attention(qkv())
    assert seen == ["native", "reference", "native", "reference", "reference", "native"]


def test_a_bound_op_keeps_the_backend_it_was_bound_with(seen):
    with ops.use("reference"):
        bound = ATTENTION.bind(qkv(), None)
    for run in (bound, pickle.loads(pickle.dumps(bound))):
        out, _, _ = run(qkv(batch=2), None)
        torch.testing.assert_close(out, ops.reference.attention(qkv(batch=2))[0])
        assert run.backend == "reference"
    assert seen == ["reference"] * 2 and ATTENTION.bind(qkv(), None).backend == "native"
    with ops.use("native"), pytest.raises(RuntimeError, match=r"cannot run attention: no kernel for torch\.float64"):
        ATTENTION.bind(qkv(torch.float64), None)
    with pytest.raises(ValueError, match="qkv must be"):
        bound(torch.zeros(1, 4, 2, 2, 8), None)
    with pytest.raises(ValueError, match="chooses no row"):
        bound(qkv(), torch.zeros(2, dtype=torch.bool))


def test_unknown_backends_are_named(monkeypatch):
    with pytest.raises(ValueError, match="unknown backend 'cuda'"), ops.use("cuda"):
        pass
    monkeypatch.setenv("OSTRACK_FAST_BACKEND", "tritn")
    with pytest.raises(ValueError, match="unknown backend 'tritn': choose native, triton, reference or auto"):
        ops.attention(qkv())


def test_preferences_come_before_the_order_and_after_the_user(monkeypatch):
    rule = Preference("cpu", ("reference", "native"), lambda qkv, mask: qkv.shape[0] > 1)
    monkeypatch.setattr(ATTENTION, "preferences", (rule,))
    assert ATTENTION.choose(qkv(), None) == "native"
    assert ATTENTION.choose(qkv(batch=2), None) == "reference"
    with ops.use("native"):
        assert ATTENTION.choose(qkv(batch=2), None) == "native"


@pytest.mark.parametrize("name", ["linear", "conv3x3", "restore_conv3x3"])
def test_amx_is_a_preference_and_no_reason(name, monkeypatch):
    """PyTorch's bfloat16 layers come first where there is AMX; ours can still be asked for."""
    layer = ops.LAYERS[name]
    arguments = next(layer.samples("small", torch.bfloat16, torch.device("cpu")))
    features = ops.native.build_info()["cpu_features"]
    for amx in (False, True):
        info = {"cpu_features": features | {"amx_bf16": amx}}
        monkeypatch.setattr(ops.native, "build_info", lambda info=info: info)
        assert layer.order(*arguments)[0] == ("reference" if amx else "native")
        assert "AMX" not in (layer.unsupported_reason("native", *arguments) or "")


def test_every_preference_names_what_exists():
    for declared in (*ops.OPS.values(), *ops.LAYERS.values()):
        for preference in declared.preferences:
            assert preference.device in ("cpu", "cuda")
            assert set(preference.order) <= set(ops.BACKENDS)
            assert "reference" in preference.order


def test_arguments_may_be_named_and_left_out():
    restore = ops.OPS["restore"]
    tokens, ids = torch.zeros(1, 2, 4), torch.zeros(1, 2, dtype=torch.int64)
    assert restore.complete((tokens,), {"ids": ids, "grid": 2})[2:] == (2, None, None, 1e-6, False, None)
    for wrong in ({"tokens": tokens}, {"sides": 2}):
        with pytest.raises(TypeError, match="restore takes tokens, ids, grid"):
            restore.complete((tokens, ids), wrong)


def test_what_no_backend_can_run_gives_every_reason():
    weight = torch.zeros(6, 4, dtype=torch.float32)
    with (
        ops.use("reference"),
        pytest.raises(RuntimeError, match="cannot run linear: only the compiled kernels"),
    ):
        ops.layers.linear(weight, weight[:, 0], dtype=torch.int8)


def test_the_report_has_a_row_for_every_op_and_a_reason_for_every_other_backend():
    rows = ops.report()
    names = [row[0] for row in rows if row[1] == "cpu"]
    assert names == [*ops.OPS, *ops.LAYERS]
    assert {"attention", "crop", "update_box", "linear", "conv3x3", "restore_conv3x3", "cross_attention"} <= set(names)
    for _, _, chosen, others in rows:
        assert sorted([chosen, *(name for name, _ in others)]) == sorted(ops.BACKENDS)
        assert all(reason for _, reason in others)
