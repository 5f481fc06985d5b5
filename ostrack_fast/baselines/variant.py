"""What the networks beside OSTrack have in common."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from ..config import ModelConfig, get_config
from ..model import OSTrack
from ..model.checkpoint import CheckpointError, find_weights, fitting, read_state


class Variant(OSTrack):
    """A network with OSTrack's inputs, outputs and training, which `Tracker` runs through its own modules.

    Raises:
        ValueError: a configuration that eliminates candidates.
    """

    runs_frozen: ClassVar[bool] = False

    def __init__(self, cfg: ModelConfig):
        if cfg.ce_layers:
            raise ValueError(f"{type(self).__name__} eliminates no candidates: set ce_layers and ce_keep_ratio to ()")
        super().__init__(cfg)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, cfg: ModelConfig | str | None = None) -> Variant:
        """A trained network in evaluation mode, from a file that this package's training wrote.

        Args:
            cfg: a configuration or a preset's name; by default the one in the file.

        Raises:
            FileNotFoundError: no such file. CheckpointError: it is of another network, or says no configuration.
        """
        path = find_weights(name_or_path)
        state, carried = read_state(path)
        config = carried if cfg is None else get_config(cfg)
        if config is None:
            raise CheckpointError(f"{path} carries no configuration: pass cfg=")
        model = cls(config)
        model.load_state_dict(fitting(state, model, str(path)))
        return model.eval()
