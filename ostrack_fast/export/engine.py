"""Tracking with an exported ONNX file: the network runs in onnxruntime, crop and decode are the ops of this package."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ..config import ModelConfig
from ..devices import DTYPES
from ..engine import Engine
from ..model import FrozenOSTrack, Template
from ..model.vit import square_box
from ..smoothing import Smoothing
from ..targets import Targets
from .formats import METADATA, Maps, open_session, run_session


class _OnnxNetwork(NamedTuple):
    """What an `Engine` reads of its network. The file's inputs are float32, and it ranks the candidates itself.

    Args:
        session: runs the file.
        one_by_one: it takes one target at a time.
        compute_dtype: that it was exported for.
    """

    session: Any
    one_by_one: bool
    compute_dtype: torch.dtype
    dtype: torch.dtype = torch.float32
    eliminates: bool = False
    candidates: None = None
    recordable: bool = False

    def crop_patches(self) -> None:
        """The file takes images."""

    def tail(self, window: Tensor) -> None:
        """The file ends with the maps."""

    def __call__(self, template: Template, search: Tensor, mask: Tensor | None) -> Maps:
        """As `FrozenOSTrack`, of templates that are images and boxes, see `OnnxEngine`."""
        inputs = (template.tokens, search, template.qkv)[: len(self.session.get_inputs())]
        if not self.one_by_one:
            return run_session(self.session, *inputs)
        each = [run_session(self.session, *one) for one in zip(*(i.split(1) for i in inputs), strict=True)]
        score, size, offset = (torch.cat(maps) for maps in zip(*each, strict=True))
        return score, size, offset


class OnnxEngine(Engine):
    """An `Engine` whose network is an ONNX file that `export_model` wrote with a batch of 1 or of any size.

    Args:
        path: the file; it carries the model's configuration.
        providers: onnxruntime's execution providers, best first; by default the CPU's alone.
        smoothing: as of `Engine`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an ONNX file of `export_model`, or one of another fixed batch size.
        ImportError: a package of the extra `export` is missing.
    """

    def __init__(self, path: str | Path, providers: Sequence[str] | None = None, smoothing: Smoothing | None = None):
        session, batch, dtype, cfg = _open(Path(path), providers)
        if batch not in (1, None):
            raise ValueError(f"{path} takes {batch} targets at once: export it with a batch of 1 or of any size")
        # Only what `_OnnxNetwork` has is read: all methods that read more are overridden below.
        network = cast(FrozenOSTrack, _OnnxNetwork(session, batch == 1, dtype))
        self._start(network, cfg, torch.device("cpu"), smoothing)

    def _allocate(self, rows: int) -> Targets:
        size = self.cfg.template_size
        # The template's image takes the place of its tokens and the box in it that of their qkv: the file has the rest.
        return Targets(
            torch.zeros(rows, 3, size, size, dtype=torch.float32, device="cpu"),
            square_box(self.cfg).repeat(rows, 1),
            torch.zeros(rows, 0, dtype=torch.bool, device="cpu"),
            torch.ones(rows, 4, dtype=torch.float64, device="cpu"),
        )

    def _set_templates(self, rows: slice, images: Tensor, box: Tensor | None) -> None:
        self._targets.tokens[rows] = images
        self._targets.qkv[rows] = square_box(self.cfg) if box is None else box


def _open(path: Path, providers: Sequence[str] | None) -> tuple[Any, int | None, torch.dtype, ModelConfig]:
    """The session of a file, and what `export_model` noted in it: batch, dtype and configuration."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file: give an ONNX file that ostrack-fast export wrote")
    try:
        session = open_session(path, providers)
    except Exception as error:  # onnxruntime's errors have no base of their own
        if type(error).__module__.startswith("onnxruntime"):
            raise ValueError(f"{path} cannot be read as an ONNX file: {error}") from None
        raise
    noted = session.get_modelmeta().custom_metadata_map.get(METADATA)
    if noted is None:
        raise ValueError(f"{path} was not written by ostrack-fast export: it does not carry the model's configuration")
    try:
        facts = json.loads(noted)
        return session, facts["batch"], DTYPES[facts["dtype"]], ModelConfig.from_dict(facts["config"])
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{path} carries notes that cannot be read ({error!r}): export it again") from None
