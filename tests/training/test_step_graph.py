"""A step as a graph: the same steps as without one, whatever changes between them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ostrack_fast.training.config import TrainConfig
from ostrack_fast.training.losses import BOX_CELLS, ostrack_loss
from ostrack_fast.training.step_graph import StepGraph, set_rate
from ostrack_fast.training.trainer import Trainer

from .test_on_device import TINY, pairs, trainer


class HostGraph(StepGraph):
    """Runs again what a GPU would replay, on the inputs that the graph holds."""

    replays = 0

    def _capture(self):
        self._result = torch.empty(0)

    def _replay(self):
        self.replays += 1
        self._result = self._step(self._inputs)


@pytest.mark.parametrize("again", ["none", "mlp"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("where", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_steps_are_those_without_a_graph(where, precision, again, no_tf32):
    """Rates, values and, every few steps, counts of tokens change."""
    if where == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    made = []
    for graph in (False, True):
        cfg = replace(trainer("cpu", precision, attention=0.5).cfg, pairs_per_epoch=64, ce_warmup_epochs=2.0)
        again_if_graph = again if graph else "none"
        run = Trainer(
            replace(cfg, cuda_graph=graph and where == "cuda", activation_checkpointing=again_if_graph), where
        )
        if graph and where == "cpu":
            run._graph = HostGraph(run._compute, run.device)
        made.append(run)
    plain, captured = made
    random = np.random.default_rng(0)
    tolerance = {"bfloat16": 5e-2, "float32": 1e-5 if where == "cpu" else 1e-3}[precision]
    for _ in range(14):
        batch = pairs(random, TINY, 8)
        expected, found = plain.step(batch), captured.step(batch)
        # Rounding to bfloat16 makes two runs of the same steps drift apart.
        names = found if precision == "float32" else ["loss"]
        assert [found[name] for name in names] == pytest.approx([expected[name] for name in names], rel=tolerance)
    # Not the convolutions' biases, whose gradient in front of a BatchNorm is rounding alone.
    for value, other in zip(plain.model.parameters(), captured.model.parameters(), strict=True):
        if value.dim() > 1:
            assert (value - other).norm() <= 10 * tolerance * value.norm()
    assert isinstance(captured.optimizer.param_groups[0]["lr"], torch.Tensor)
    if where == "cpu":
        assert 3 <= captured._graph.replays < 13, "no step was replayed, or none began a new graph"


def test_a_graph_reads_the_rate_of_every_step_at_one_place():
    """Also on a device without a number, which is not equal to that of a tensor there."""
    group = {"lr": 0.1}
    set_rate(group, 0.2, torch.device("cpu", 0))
    first = group["lr"]
    set_rate(group, 0.3, torch.device("cpu", 0))
    assert group["lr"] is first and first.item() == pytest.approx(0.3)


class NoWaiting(TorchDispatchMode):
    """Refuses operations whose result, or its shape, the host must know: on a GPU it would wait for it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        aten = torch.ops.aten
        if func.overloadpacket in (aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.unique_dim):
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


def nodes(result):
    """Names of the operations that the result's gradient goes through."""
    found, left = {}, [result.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in found:
            found[node] = type(node).__name__
            left += [before for before, _ in node.next_functions]
    return set(found.values())


@pytest.mark.parametrize("box_cells", BOX_CELLS)
def test_loss_and_gradient_do_not_wait_for_the_device(box_cells):
    """Forward's own checks of values, which the CPU alone makes, come before."""
    cfg = trainer("cpu", "float32", attention=0.5).cfg
    run = Trainer(replace(cfg, loss=replace(cfg.loss, box_cells=box_cells)))
    batch = pairs(np.random.default_rng(0), TINY, 8)
    out = run.network(*run._images(batch), run.template_mask, ce_keep_rate=run.keep)
    with NoWaiting():
        loss, _ = ostrack_loss(out, batch["search_box"], run.cfg.loss)
        # Its gradient counts zeros on the host, unless a mode like this one looks on.
        assert not any(name.startswith("ProdBackward") for name in nodes(loss))
        loss.backward()
        run._update(loss.detach())


def test_where_there_can_be_no_graph_it_is_refused():
    cfg = trainer("cpu", "float32").cfg
    with pytest.raises(ValueError, match="cuda_graph needs one process on a GPU, not 1 on cpu"):
        Trainer(replace(cfg, cuda_graph=True))
    assert cfg.captures and not replace(cfg, network="relative").captures
    for other in ({"precision": "float16"}, {"activation_checkpointing": "block"}):
        assert not replace(cfg, **other).captures
        with pytest.raises(ValueError, match="cuda_graph captures neither"):
            TrainConfig(cfg.model, {}, ".", cuda_graph=True, **other)
