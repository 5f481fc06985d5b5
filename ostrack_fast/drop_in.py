"""`accelerate`: the engine in place of a network of the published code, or of a fork of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .config import ModelConfig, get_config
from .engine import Engine
from .model import OSTrack
from .model.checkpoint import config_of, fitting


class AcceleratedNetwork(nn.Module):
    """Takes and returns what the published network does in tracking, and runs on an `Engine`.

    `box_head` is the original's, for trackers that call its `cal_bbox`.
    """

    def __init__(self, engine: Engine, box_head: nn.Module):
        super().__init__()
        self.engine = engine
        self.box_head = box_head
        self._embedded: tuple[Tensor, int, Tensor | None] | None = None
        self.eval()

    @torch.no_grad()
    def forward(
        self,
        template: Tensor,
        search: Tensor,
        ce_template_mask: Tensor | None = None,
        ce_keep_rate: float | None = None,
        return_last_attn: bool = False,
    ) -> dict[str, Tensor]:
        """Arguments as `OSTrack.forward`. A template is embedded when it first comes, and kept while the same one does.

        Returns:
            `pred_boxes`, `score_map`, `size_map`, `offset_map`, on the device of `search`, float32.

        Raises:
            ValueError: a keep rate or the attention map is asked for, which only the original network can give.
        """
        if ce_keep_rate is not None or return_last_attn:
            raise ValueError(
                "the accelerated network keeps its configured candidates and no attention: for ce_keep_rate or "
                "return_last_attn call the original network"
            )
        # The tensors themselves, not their addresses, which may be given to others when these are gone.
        given = template, template._version, ce_template_mask
        if self._embedded is None or not _same(given, self._embedded):
            self.engine.set_template(template, ce_template_mask)
            self._embedded = given
        return {name: value.to(search.device) for name, value in self.engine.forward(search).items()}


def _same(a: tuple[Tensor, int, Tensor | None], b: tuple[Tensor, int, Tensor | None]) -> bool:
    return a[0] is b[0] and a[1] == b[1] and a[2] is b[2]


def accelerate(
    network: nn.Module,
    cfg: ModelConfig | str | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
) -> AcceleratedNetwork:
    """A faster stand-in, for tracking, for an `OSTrack` of this package, of the published code or of a fork.

    Args:
        network: its parameters must have the published names and shapes; it is read, not changed.
        cfg: the configuration, or a preset's name. Without it, it is that of an `OSTrack` of this package, else what
            the shapes say, with the blocks that eliminate from the published backbone's `ce_loc` and `ce_keep_ratio`.
        device, dtype: of the `Engine`.

    Raises:
        ValueError: the parameters do not fit the configuration, saying which.

    >>> self.network = ostrack_fast.accelerate(self.network)  # in the published tracker's __init__
    """
    if isinstance(network, OSTrack):
        return AcceleratedNetwork(Engine(network, device, dtype), network.box_head)
    state = {name: value.detach() for name, value in network.state_dict().items()}
    what = f"the given {type(network).__name__}"
    if cfg is None:
        backbone = getattr(network, "backbone", None)
        layers, ratios = (tuple(getattr(backbone, name, None) or ()) for name in ("ce_loc", "ce_keep_ratio"))
        cfg = config_of(state, what, ce_layers=layers, ce_keep_ratio=ratios[: len(layers)])
    model = OSTrack(get_config(cfg) if isinstance(cfg, str) else cfg)
    model.load_state_dict(fitting(state, model.cfg, what))
    return AcceleratedNetwork(Engine(model, device, dtype), network.get_submodule("box_head"))
