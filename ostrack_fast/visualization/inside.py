"""Pictures of what the network attends to, which candidates it eliminates, and where its features are strong.

Figures 4, 5 and 6 of the OSTrack paper, for any frame of a video.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import ops
from ..data.images import Image
from ..model import OSTrack, template_mask

KINDS = ("attention", "elimination", "features")
SIDE = 256
_DIM = 0.25
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, eq=False)
class View:
    """What happened inside the network in one frame.

    Args:
        region: (X,X,3) uint8, the search region.
        attention: of each block, (F,F): the attention that the centre of the template pays to each cell, averaged over
            heads; 0 for cells that were eliminated before.
        alive: of each block, (F,F) bool: the cells that are left after it.
        features: (F,F) norm of each cell's features as the head gets them, after the last normalization; 0 where
            eliminated.
    """

    region: Image
    attention: list[NDArray[np.float32]]
    alive: list[NDArray[np.bool_]]
    features: NDArray[np.float32]

    def activation(self) -> NDArray[np.float32]:
        """The activation map of Figure 6, (F,F): how much stronger a cell's features are than the weakest that is left.

        The normalization makes all norms similar (40 to 70 with `small`), so that from 0 on the picture would show
        little more than which cells were eliminated.
        """
        left = self.alive[-1]
        return np.where(left, self.features - self.features[left].min(), 0).astype(np.float32)


class Inside:
    """A network and its template, ready to look at frames.

    Args:
        model: is used as it is, in float32, without the fused engine: its blocks are what is looked at.
        frame: (h,w,3) uint8 RGB that holds the target.
        box: x, y, w, h of the target in it, pixels.
    """

    def __init__(self, model: OSTrack, frame: Image, box: Sequence[float]) -> None:
        self.model, self.cfg = model.eval(), model.cfg
        around = torch.tensor([list(box)], dtype=torch.float64, device="cpu")
        self._template, _ = ops.crop(torch.from_numpy(frame), around, self.cfg.template_factor, self.cfg.template_size)
        middle = (self.cfg.template_grid - 1) // 2
        self._centre = middle * self.cfg.template_grid + middle

    def look(self, frame: Image, box: Sequence[float]) -> View:
        """What happens in a frame whose search region lies around `box`, the target's place in the frame before."""
        around = torch.tensor([list(box)], dtype=torch.float64, device="cpu")
        search, _ = ops.crop(torch.from_numpy(frame), around, self.cfg.search_factor, self.cfg.search_size)
        attention: list[NDArray[np.float32]] = []
        alive: list[NDArray[np.bool_]] = []
        # A template range that depends on the box is not needed here: the picture is of the centre.
        mask = template_mask(self.cfg, torch.tensor([[0.25, 0.25, 0.5, 0.5]], dtype=torch.float32, device="cpu"))
        with torch.no_grad(), self._watched(attention, alive):
            out = self.model(self._template, search, mask)
        feature_map = out["backbone_feat"][0, self.cfg.template_grid**2 :].norm(dim=1)
        return View(pixels_of(search[0]), attention, alive, self._grid(feature_map))

    @contextmanager
    def _watched(self, attention: list, alive: list) -> Iterator[None]:
        """Collect every block's attention and the cells it leaves, for as long as the context lasts."""
        template, cells = self.cfg.template_grid**2, self.cfg.search_grid**2

        def before(block: torch.nn.Module, arguments: tuple) -> None:
            tokens, ids = arguments[:2]
            attend: object = block.attn
            probability = ops.reference.attention_map(attend.packed(block.norm1(tokens)))  # type: ignore[attr-defined, operator]
            paid = torch.zeros(cells, dtype=torch.float32, device="cpu")
            paid[ids[0]] = probability[0, :, self._centre, template:].mean(0).float()
            attention.append(self._grid(paid))

        def after(block: torch.nn.Module, arguments: tuple, result: tuple) -> None:
            left = torch.zeros(cells, dtype=torch.bool, device="cpu")
            left[result[1][0]] = True
            alive.append(left.reshape(self.cfg.search_grid, -1).numpy())

        hooks = []
        for block in self.model.backbone.blocks:
            hooks += [block.register_forward_pre_hook(before), block.register_forward_hook(after)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _grid(self, values: Tensor) -> NDArray[np.float32]:
        return values.reshape(self.cfg.search_grid, -1).numpy()


def draw(view: View, kind: str, blocks: Sequence[int]) -> Image:
    """The search region and beside it a picture of each block, (h,w,3) uint8 RGB.

    Args:
        kind: "attention" (Figure 4), "elimination" (Figure 5) or "features" (Figure 6, of the last block alone).
        blocks: numbers of the blocks to show, counted from 0.

    Raises:
        ValueError: an unknown kind, or a block that the network does not have.
    """
    if kind not in KINDS:
        raise ValueError(f"there is no picture of {kind!r}: choose {', '.join(KINDS)}")
    wrong = [block for block in blocks if not 0 <= block < len(view.alive)]
    if wrong:
        raise ValueError(f"the network has blocks 0 to {len(view.alive) - 1}, not {wrong[0]}")
    region = cv2.resize(view.region, (SIDE, SIDE))
    panels = [titled(region, "search region")]
    if kind == "features":
        panels.append(titled(heat(region, view.activation()), "features"))
    for block in blocks if kind != "features" else ():
        if kind == "attention":
            panels.append(titled(heat(region, view.attention[block]), f"block {block}"))
        else:
            left = view.alive[block]
            panels.append(titled(dimmed(region, left), f"block {block}: {int(left.sum())} of {left.size}"))
    return np.concatenate(panels, axis=1)


def default_blocks(model: OSTrack, kind: str) -> list[int]:
    """The blocks to show: those that eliminate, or where none does, or for attention, four spread over the depth."""
    cfg = model.cfg
    if kind == "elimination" and cfg.ce_layers:
        return list(cfg.ce_layers)
    return sorted({round(index) for index in np.linspace(0, cfg.depth - 1, 4)})


def dimmed(region: Image, alive: NDArray[np.bool_]) -> Image:
    """The region, of side `SIDE`, dark in the cells (F,F) that are not alive."""
    shown = cv2.resize(alive.astype(np.uint8), (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)[..., None]
    return (region * np.where(shown, 1, _DIM)).astype(np.uint8)


def heat(region: Image, values: NDArray[np.float32]) -> Image:
    """Values (F,F), from none to the largest, as colours over the region."""
    scaled = np.clip(255 * values / max(float(values.max()), 1e-12), 0, 255).astype(np.uint8)
    large = cv2.resize(scaled, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    colours = cv2.cvtColor(cv2.applyColorMap(large, cv2.COLORMAP_JET), cv2.COLOR_BGR2RGB)
    return cv2.addWeighted(region, 0.45, colours, 0.55, 0)


def titled(picture: Image, title: str) -> Image:
    """A picture of side `SIDE` with a white frame and a line above it."""
    strip = np.full((24, SIDE, 3), 255, np.uint8)
    cv2.putText(strip, title, (4, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (20, 20, 20), 1, cv2.LINE_AA)
    framed = np.concatenate((strip, picture))
    return np.pad(framed, ((2, 2), (2, 2), (0, 0)), constant_values=255)


def pixels_of(patch: Tensor) -> Image:
    """A normalized patch (3,Z,Z) as (Z,Z,3) uint8 RGB."""
    pixels = patch.float().cpu().permute(1, 2, 0).numpy() * np.array(_STD, np.float32) + np.array(_MEAN, np.float32)
    return (255 * pixels).round().clip(0, 255).astype(np.uint8)
