"""A step as a graph: the same steps as without one, whatever changes between them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ostrack_fast.training.config import TrainConfig
from ostrack_fast.training.step_graph import StepGraph
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
def test_steps_are_those_without_a_graph(where, precision, again):
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


def test_where_there_can_be_no_graph_it_is_refused():
    cfg = trainer("cpu", "float32").cfg
    with pytest.raises(ValueError, match="cuda_graph needs one process on a GPU, not 1 on cpu"):
        Trainer(replace(cfg, cuda_graph=True))
    for other in ({"precision": "float16"}, {"activation_checkpointing": "block"}):
        with pytest.raises(ValueError, match="cuda_graph captures neither"):
            TrainConfig(cfg.model, {}, "", cuda_graph=True, **other)
