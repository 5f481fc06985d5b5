"""The fast path: a frozen OSTrack and its targets, which a `Locator` finds in frames.

On a GPU a frame is one CUDA graph (upload, crop, network, decode, box update) and one small download.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import NoneType
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from . import ops
from .boxes import crop_window, image_to_crop
from .config import ModelConfig
from .devices import resolve_device, resolve_dtype
from .graphs import GraphedFunction
from .inputs import check_flag
from .locator import Locator
from .model import FrozenOSTrack, OSTrack, PlainNetwork, template_mask
from .smoothing import Smoothing
from .targets import Targets

# A CUDA graph serves one frame size and batch size. Only the most recently used ones are kept, so that a stream whose
# frame size changes all the time does not fill the memory.
_MAX_GRAPHS = 8


@contextmanager
def _isolated() -> Iterator[None]:
    """Compute without gradients and without the autocast or inference mode of the caller.

    Autocast would lower the precision that the engine was asked for, and tensors that are made in inference mode cannot
    be written to outside of it. Either is rarely on, and to turn it off takes longer than to ask.
    """
    with (
        torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext(),
        torch.no_grad(),
        _without_autocast("cpu"),
        _without_autocast("cuda"),
    ):
        yield


def _without_autocast(device: str) -> AbstractContextManager:
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


class Engine:
    """A frozen OSTrack with its targets: templates, boxes, and on a GPU the graphs and buffers of a frame.

    It is used in one of two ways. In place of the model: `set_template(z)`, then `forward(x)` on search crops. On
    video: `add(frame, box)` for each target, then `step(frame)`, which crops, locates and moves every target's box.
    The caller's autocast, inference mode, default dtype and default device change no result. An engine serves one
    thread at a time.

    Args:
        model: may be in any mode, dtype and device; it is read, not changed, unless `consume`.
        device: "auto" (a CUDA GPU if there is one), "cpu", "cuda", "cuda:1" or a torch.device.
        dtype: "auto" (see `devices.resolve_dtype`), a name in `devices.DTYPES`, or a torch.dtype.
        candidate_elimination: False keeps all candidates, as if the configuration eliminated none.
        consume: free the model's weights block by block while they are packed. The model is of no use afterwards, and
            no weight is in memory twice.
        smoothing: of the boxes that `step` and `step_each` find; None is the published behaviour.

    Attributes:
        graphs: on a GPU, what was captured for frames by number of targets and shape, the latest last.

    Raises:
        TypeError: what is no model, no flag or no settings.
        ValueError: an unknown or unavailable device or dtype.
    """

    def __init__(
        self,
        model: OSTrack,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        candidate_elimination: bool = True,
        consume: bool = False,
        smoothing: Smoothing | None = None,
    ):
        if not isinstance(model, OSTrack):
            what = f"an OSTrack, got {reprlib.repr(model)}"
            raise TypeError(f"the model must be {what}: OSTrack.from_pretrained loads one by its name or file")
        check_flag("candidate_elimination", candidate_elimination)
        check_flag("consume", consume)
        if not isinstance(smoothing, (Smoothing, NoneType)):
            raise TypeError(f"smoothing must be a Smoothing or None, got {reprlib.repr(smoothing)}")
        on = resolve_device(device)
        with _isolated():
            how = on, resolve_dtype(dtype, on)
            network = (
                FrozenOSTrack(model, *how, candidate_elimination, consume)
                if model.runs_frozen
                else cast(FrozenOSTrack, PlainNetwork(model, *how))
            )
            self._start(network, model.cfg, on, smoothing)

    def _start(
        self, network: FrozenOSTrack, cfg: ModelConfig, device: torch.device, smoothing: Smoothing | None = None
    ) -> None:
        self.network, self.cfg, self.device = network, cfg, device
        self._locator = Locator(network, cfg, device, smoothing)
        self._targets = self._allocate(1)
        # The boxes as the host knows them, so that asking which pixels of a frame are read does not wait for a GPU.
        self._boxes: list[Sequence[float]] = []
        self._candidates: Tensor | None = None
        # The reference crops on the host, which a graph cannot hold.
        self._uses_graphs = self.device.type == "cuda" and ops.forced_backend() != "reference"
        self.graphs: dict[tuple[int, ...], GraphedFunction] = {}

    @property
    def count(self) -> int:
        """Number of targets."""
        return len(self._boxes)

    @property
    def boxes(self) -> list[Sequence[float]]:
        """The box of every row, xywh in pixels: the next frame is searched around it."""
        return list(self._boxes)

    @property
    def dtype(self) -> torch.dtype:
        """Compute dtype of the matmuls: float32, float16, bfloat16 or int8."""
        return self.network.compute_dtype

    def _allocate(self, rows: int) -> Targets:
        cfg, device = self.cfg, self.device
        tokens = cfg.template_grid**2
        # CUDA graphs run at power-of-two batch sizes, so unused rows are computed too. Ones keep their boxes valid.
        return Targets(
            torch.ones(rows, tokens + cfg.search_grid**2, cfg.embed_dim, dtype=torch.float32, device=device),
            torch.ones(rows, self.network.qkv_rows, 3 * cfg.embed_dim, dtype=self.network.dtype, device=device),
            torch.ones(rows, tokens, dtype=torch.bool, device=device),
            torch.ones(rows, 4, dtype=torch.float64, device=device),
        )

    def _grow(self, count: int) -> None:
        """Make room for `count` targets. Graphs read the buffers they were captured with, so new buffers drop them."""
        rows = len(self._targets.box)
        if count > rows:
            larger = self._allocate(max(count, 2 * rows))
            for old, new in zip(self._targets, larger, strict=True):
                new[: self.count] = old[: self.count]
            self._targets = larger
            self.graphs.clear()

    @_isolated()
    def set_template(self, template: Tensor, mask: Tensor | None = None, box: Tensor | None = None) -> None:
        """Replace all targets by these templates.

        Args:
            template: (B,3,Z,Z), normalized as the model's input.
            mask: (T,) or (B,T) bool, the template tokens that rank the candidates; None takes the configuration's.
            box: (B,4) xywh of the targets in units of the template crop, for a configuration with `template_box`; None
                where they are not known.
        """
        size, tokens = self.cfg.template_size, self.cfg.template_grid**2
        if template.dim() != 4 or template.shape[1:] != (3, size, size):
            raise ValueError(f"template must be (B,3,{size},{size}), is {tuple(template.shape)}")
        if mask is None and self.network.eliminates:
            mask = template_mask(self.cfg)
        if mask is not None and mask.shape not in ((tokens,), (len(template), tokens)):
            raise ValueError(f"mask must be ({tokens},) or ({len(template)},{tokens}), is {tuple(mask.shape)}")
        if mask is not None and not bool(mask.any(-1).all()):
            raise ValueError("mask chooses no row for some template, so no template token would rank the candidates")
        if box is not None and box.shape != (len(template), 4):
            raise ValueError(f"box must be ({len(template)},4), one for each template, is {tuple(box.shape)}")
        self.clear()
        self._grow(len(template))
        self._set_templates(slice(0, len(template)), template, box)
        self._boxes = self._targets.box[: len(template)].tolist()
        if mask is not None:
            self._targets.mask[: self.count] = mask.to(self.device)

    def _set_templates(self, rows: slice, images: Tensor, box: Tensor | None) -> None:
        box = None if box is None else box.to(self.device, torch.float32)
        tokens, qkv = self.network.embed_template(images.to(self.device), box)
        template = self.cfg.template_grid**2
        self._targets.tokens[rows, :template] = tokens[:, :template]
        self._targets.qkv[rows, :template] = qkv[:, :template]

    @_isolated()
    def forward(self, search: Tensor) -> dict[str, Tensor]:
        """Locate the targets in search crops (B,3,X,X), B the number of templates.

        Returns:
            `pred_boxes` (B,1,4) cxcywh in units of the crop; `score_map` (B,1,F,F), `size_map`, `offset_map`
            (B,2,F,F); as `OSTrack.forward`. Nothing is checked for being finite, so that nobody waits for a GPU: crops
            with NaN give maps with NaN, and boxes that mean nothing. `step` refuses them.
        """
        size = self.cfg.search_size
        if search.shape != (self.count, 3, size, size) or self.count == 0:
            raise ValueError(
                f"search must be (B,3,{size},{size}) with B = {self.count} templates set, is {tuple(search.shape)}"
            )
        # A frozen layer rounds float32 as it reads it; PyTorch would start threads of its own for that.
        unrounded = search.dtype == torch.float32 and not self._uses_graphs
        search = search.to(self.device, search.dtype if unrounded else self.network.dtype)
        targets = self._targets.rows(slice(self.count))
        if self._uses_graphs:
            *maps, _ = self._run(self._locator.maps, targets, search)
            score, size_map, offset = map(torch.clone, maps)
            boxes = self._locator.decode(score, size_map, offset)
        else:
            boxes, score, size_map, offset = map(torch.clone, self._locator.in_crops(targets, search))
        return {"pred_boxes": boxes[:, None], "score_map": score, "size_map": size_map, "offset_map": offset}

    __call__ = forward

    @_isolated()
    def add(self, frame: np.ndarray, box: tuple[float, float, float, float]) -> int:
        """Add a target, xywh in pixels of a frame (h,w,3) uint8 RGB. Returns its row in the results of `step`."""
        cfg, row = self.cfg, self.count
        around = torch.tensor([box], dtype=torch.float64, device="cpu")
        # On the engine's device, whose backend may be forced to one that runs nowhere else.
        image, place = _as_tensor(frame).to(self.device), around.to(self.device)
        patch, scale = ops.crop(image, place, cfg.template_factor, cfg.template_size, self.network.dtype)
        self._grow(row + 1)
        in_crop = image_to_crop(around.float(), around.float(), scale.float().cpu(), cfg.template_size)
        self._set_templates(slice(row, row + 1), patch, in_crop)
        self._targets.box[row] = around[0]
        if self.network.eliminates:
            self._targets.mask[row] = template_mask(cfg, in_crop).to(self.device)
        self._boxes.append(box)
        return row

    @_isolated()
    def drop(self, row: int) -> None:
        """Forget a target. The target of the last row moves to this row."""
        if not 0 <= row < self.count:
            raise IndexError(f"no target in row {row}: there are {self.count}")
        last = self.count - 1
        for rows in self._targets:
            rows[row] = rows[last]
        self._boxes[row] = self._boxes[last]
        self._boxes.pop()

    @_isolated()
    def place(self, boxes: Sequence[Sequence[float]]) -> None:
        """Set the box of every row, xywh in pixels: the next frame is searched around it."""
        if len(boxes) != self.count:
            raise ValueError(f"{len(boxes)} boxes for {self.count} targets")
        self._targets.box[: self.count] = torch.tensor(boxes, dtype=torch.float64, device="cpu")
        self._boxes = list(boxes)

    def clear(self) -> None:
        """Forget all targets."""
        self._boxes = []

    @_isolated()
    def step(self, frame: np.ndarray) -> list[list[float]]:
        """Find all targets in the next frame, (h,w,3) uint8 RGB of any size.

        Returns:
            A row (x, y, width, height, score) for every target, in pixels.

        Raises:
            RuntimeError: there is no target.
            FloatingPointError: the network's output is not finite; the targets stay where they were.
        """
        if self.count == 0:
            raise RuntimeError("no target to follow: add(frame, box) first")
        image, targets = _as_tensor(frame), self._padded()
        part = self._pixels_read(len(image), image.shape[1]) if self._uses_graphs else ()
        found, candidates = self._run(self._locator, targets, image, part)
        return self._move(found[: self.count], candidates)

    @_isolated()
    def step_each(self, frames: Sequence[np.ndarray]) -> list[list[float]]:
        """As `step`, of targets in videos of their own: the target of row i is looked for in frames[i].

        The frames may differ in size. They are cropped one by one, and go through the network as one batch.

        Raises:
            ValueError: not one frame for each target. Otherwise as `step`.
        """
        if self.count == 0:
            raise RuntimeError("no target to follow: add(frame, box) first")
        if len(frames) != self.count:
            raise ValueError(f"{len(frames)} frames for {self.count} targets")
        images, targets = [_as_tensor(frame) for frame in frames], self._padded()
        return self._move(*self._locator.each(targets, images, lambda x: self._run(self._locator.maps, targets, x)))

    def _move(self, found: Tensor, candidates: Tensor | None) -> list[list[float]]:
        """Take the boxes found, (count,5), for those of the targets. Raises FloatingPointError if one is not finite."""
        rows_found = found.tolist()
        if not all(value - value == 0 for row in rows_found for value in row):
            raise FloatingPointError(
                f"the network's output is not finite in {self.dtype}: try dtype='float32'; if that fails too, the "
                "weights are damaged"
            )
        self._targets.box[: self.count] = found[:, :4]
        self._boxes = [row[:4] for row in rows_found]
        self._candidates = candidates
        return rows_found

    @_isolated()
    def look(self, frame: np.ndarray, row: int, boxes: Sequence[Sequence[float]]) -> list[list[float]]:
        """Search a frame for one target around several boxes, in one batch; the target stays where it is.

        Args:
            frame: (h,w,3) uint8 RGB of any size.
            row: of the target whose template is used.
            boxes: xywh in pixels; each fixes the place and the size of one search region.

        Returns:
            A row (x, y, width, height, score) for each of `boxes`.
        """
        if not 0 <= row < self.count:
            raise IndexError(f"no target in row {row}: there are {self.count}")
        spare = slice(self.count, self.count + len(boxes))
        self._grow(spare.stop)
        for rows in self._targets:
            rows[spare] = rows[row].clone()
        self._targets.box[spare] = torch.tensor(boxes, dtype=torch.float64, device="cpu").to(self.device)
        return self._locator(self._targets.rows(spare), _as_tensor(frame).to(self.device), smoothed=False)[0].tolist()

    def candidates(self, row: int) -> list[int]:
        """Cells of the search region, numbered row by row, that elimination left for this target in the last `step`.

        All of them where none are eliminated, or where an exported file does not tell.
        """
        if self._candidates is None:
            return list(range(self.cfg.search_grid**2))
        return self._candidates[row].tolist()

    def _padded(self) -> Targets:
        """The targets; for graphs with more rows, up to a power of two, so that few serve every number of targets."""
        rows = min(len(self._targets.box), 1 << (self.count - 1).bit_length()) if self._uses_graphs else self.count
        return self._targets.rows(slice(rows))

    def _pixels_read(self, height: int, width: int) -> tuple[slice, slice]:
        """The rows and columns of a frame of this size that hold all pixels which the targets' crops read."""
        inside = [
            (max(top, 0), min(top + side, height), max(left, 0), min(left + side, width))
            for left, top, side in (crop_window(box, self.cfg.search_factor) for box in self._boxes)
            if top < height and top + side > 0 and left < width and left + side > 0
        ]
        if not inside:
            return slice(0, 0), slice(0, 0)
        tops, bottoms, lefts, rights = zip(*inside, strict=True)
        return slice(min(tops), max(bottoms)), slice(min(lefts), max(rights))

    def _run(
        self, function: Callable[[Targets, Tensor], Any], targets: Targets, value: Tensor, part: tuple[slice, ...] = ()
    ) -> Any:
        """`function(targets, value)`; with graphs the captured one for values of this shape, see `GraphedFunction`.

        A new one replaces the least recently used one.
        """
        if not self._uses_graphs:
            return function(targets, value.to(self.device))
        # A frame has an axis less than search crops, so the shape tells the functions apart.
        key = (len(targets.box), *value.shape)
        graph = self.graphs.pop(key, None)
        if graph is None:
            if len(self.graphs) == _MAX_GRAPHS:
                del self.graphs[next(iter(self.graphs))]
            graph = GraphedFunction(lambda x: function(targets, x), value, self.device)
        self.graphs[key] = graph
        return graph(value, part)


def _as_tensor(frame: np.ndarray) -> Tensor:
    # torch takes neither negative strides (a BGR frame flipped by [..., ::-1]) nor read-only memory.
    return torch.from_numpy(np.require(frame, requirements=["C", "W"]))
