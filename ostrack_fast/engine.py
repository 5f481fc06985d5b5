"""The fast path: a frozen OSTrack and its targets, from frame to boxes without a detour.

On a GPU a frame is one CUDA graph (upload, crop, network, decode, box update) and one small download.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import pi
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import ops
from .boxes import image_to_crop
from .config import ModelConfig
from .model import FrozenOSTrack, OSTrack, Template, template_mask
from .ops.layers import fast_bfloat16, why_no_int8

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
}

# At least so many pixels of the box stay inside the frame (published `clip_box` call).
CLIP_MARGIN = 10

# CUDA graphs kept, one for each size of frame and batch: a stream that changes its size at every frame must not fill
# the memory.
_MAX_GRAPHS = 8


class _Targets(NamedTuple):
    """A row a target: its template's `tokens` and `qkv`, mask (n,T) bool, box (n,4) float64 xywh in pixels."""

    tokens: Tensor
    qkv: Tensor
    mask: Tensor
    box: Tensor


class Engine:
    """A frozen OSTrack with its targets: templates, boxes, and on a GPU the graphs and buffers of a frame.

    Two ways in. As the model: `set_template(z)`, then `forward(x)` on search crops. On video: `add(frame, box)` for
    each target, then `step(frame)`, which crops, locates and moves every target's box. Not for two threads at once.

    Args:
        model: in whatever mode, dtype and place: it is read, not changed.
        device: "auto" (a CUDA GPU if there is one), "cpu", "cuda", "cuda:1" or a torch.device.
        dtype: "auto" (see `resolve_dtype`), a name in `DTYPES`, or a torch.dtype.
        candidate_elimination: False keeps all candidates, as if the configuration eliminated none.

    Raises:
        ValueError: an unknown or unavailable device or dtype.
    """

    def __init__(
        self,
        model: OSTrack,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        candidate_elimination: bool = True,
    ):
        self.device = resolve_device(device)
        products = resolve_dtype(dtype, self.device)
        with torch.no_grad():
            self.network = FrozenOSTrack(model, self.device, products, candidate_elimination)
            self.cfg: ModelConfig = model.cfg
            self.window = hann_window(self.cfg.search_grid).to(self.device)
            self.count = 0
            self._targets = self._reserve(1)
        self._uses_graphs = self.device.type == "cuda"
        self._graphs: dict[tuple[int, ...], _Graph] = {}

    @property
    def dtype(self) -> torch.dtype:
        """Of the products: float32, float16, bfloat16 or int8."""
        return self.network.products

    def _reserve(self, capacity: int) -> _Targets:
        cfg = self.cfg
        tokens = cfg.template_grid**2
        # Ones: a row without a target still runs where graphs come in powers of two, and a box must not be empty.
        return _Targets(
            torch.ones(capacity, tokens, cfg.embed_dim, device=self.device),
            torch.ones(capacity, tokens, 3 * cfg.embed_dim, dtype=self.network.dtype, device=self.device),
            torch.ones(capacity, tokens, dtype=torch.bool, device=self.device),
            torch.ones(capacity, 4, dtype=torch.float64, device=self.device),
        )

    def _room_for(self, count: int) -> None:
        """Room for so many targets. Those there are move, and the graphs, which read the old places, go."""
        capacity = len(self._targets.box)
        if count > capacity:
            larger = self._reserve(max(count, 2 * capacity))
            for old, new in zip(self._targets, larger, strict=True):
                new[: self.count] = old[: self.count]
            self._targets = larger
            self._graphs.clear()

    @torch.no_grad()
    def set_template(self, template: Tensor, mask: Tensor | None = None) -> None:
        """Take templates (B,3,Z,Z), normalized as the model's, in place of all targets there are.

        `mask` (T,) or (B,T) bool: the template tokens that rank the candidates, by default the configuration's.
        """
        size = self.cfg.template_size
        if template.dim() != 4 or template.shape[1:] != (3, size, size):
            raise ValueError(f"template must be (B,3,{size},{size}), is {tuple(template.shape)}")
        if mask is None and self.network.eliminates:
            mask = template_mask(self.cfg)
        if mask is not None and not bool(mask.any(-1).all()):
            raise ValueError("mask chooses no row for some template: no template token would rank the candidates")
        self.count = 0
        self._room_for(len(template))
        self.count = len(template)
        self._set_templates(slice(0, self.count), template)
        if mask is not None:
            self._targets.mask[: self.count] = mask.to(self.device)

    def _set_templates(self, rows: slice, images: Tensor) -> None:
        embedded = self.network.embed_template(images.to(self.device))
        self._targets.tokens[rows], self._targets.qkv[rows] = embedded

    @torch.no_grad()
    def forward(self, search: Tensor) -> dict[str, Tensor]:
        """Locate the targets in search crops (B,3,X,X), B the number of templates.

        Returns:
            `pred_boxes` (B,1,4) cxcywh in units of the crop; `score_map` (B,1,F,F), `size_map`, `offset_map`
            (B,2,F,F); as `OSTrack.forward`.
        """
        size = self.cfg.search_size
        if search.shape != (self.count, 3, size, size) or self.count == 0:
            raise ValueError(
                f"search must be (B,3,{size},{size}) with B = {self.count} templates set, is {tuple(search.shape)}"
            )
        search = search.to(self.device, self.network.dtype)
        if not self._uses_graphs:
            score, size_map, offset = self._maps(self.count, search)
        else:
            rows = self.count
            graph = self._graph(search, rows, lambda x: self._maps(rows, x))
            score, size_map, offset = (each.clone() for each in graph(search))
        boxes, _ = ops.decode(score, size_map, offset)
        return {"pred_boxes": boxes[:, None], "score_map": score, "size_map": size_map, "offset_map": offset}

    __call__ = forward

    def _maps(self, rows: int, search: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mask = self._targets.mask[:rows] if self.network.eliminates else None
        template = Template(self._targets.tokens[:rows], self._targets.qkv[:rows])
        return self.network(template, search, mask)

    @torch.no_grad()
    def add(self, frame: np.ndarray, box: tuple[float, float, float, float]) -> int:
        """A new target, xywh in pixels of a frame (h,w,3) uint8 RGB; returns its row in the results of `step`."""
        cfg, row = self.cfg, self.count
        around = torch.tensor([box], dtype=torch.float64)
        patch, scale = ops.crop(_as_tensor(frame), around, cfg.template_factor, cfg.template_size, self.network.dtype)
        self._room_for(row + 1)
        self._set_templates(slice(row, row + 1), patch)
        self._targets.box[row] = around[0]
        if self.network.eliminates:
            place = image_to_crop(around.float(), around.float(), scale.float(), cfg.template_size)
            self._targets.mask[row] = template_mask(cfg, place).to(self.device)
        self.count = row + 1
        return row

    def drop(self, row: int) -> None:
        """Forget a target. The last row's target takes its row."""
        if not 0 <= row < self.count:
            raise IndexError(f"no target in row {row}: there are {self.count}")
        last = self.count - 1
        for rows in self._targets:
            rows[row] = rows[last]
        self.count = last

    def place(self, boxes: Sequence[Sequence[float]]) -> None:
        """Look for the targets around these boxes, xywh in pixels, in the next frame: one for each row."""
        if len(boxes) != self.count:
            raise ValueError(f"{len(boxes)} boxes for {self.count} targets")
        self._targets.box[: self.count] = torch.tensor(boxes, dtype=torch.float64)

    def clear(self) -> None:
        """Forget all targets."""
        self.count = 0

    @torch.no_grad()
    def step(self, frame: np.ndarray) -> list[list[float]]:
        """The next frame, (h,w,3) uint8 RGB of any size: a row (x, y, width, height, score) for every target, pixels.

        Raises:
            RuntimeError: there is no target.
            FloatingPointError: the network's output is not finite; the targets stay where they were.
        """
        if self.count == 0:
            raise RuntimeError("no target to follow: add(frame, box) first")
        image = _as_tensor(frame)
        if not self._uses_graphs:
            found = self._located(self.count, image)
        else:
            # Few graphs serve every number of targets: the rows up to the next power of two run along.
            rows = min(len(self._targets.box), 1 << (self.count - 1).bit_length())
            found = self._graph(image, rows, lambda x: self._located(rows, x))(image)
        rows_found = found[: self.count].tolist()
        if not all(value - value == 0 for row in rows_found for value in row):
            raise FloatingPointError(
                f"the network's output is not finite in {self.dtype}: try dtype='float32', and if it stays, the "
                "weights are damaged"
            )
        self._targets.box[: self.count] = found[: self.count, :4]
        return rows_found

    def _graph(self, like: Tensor, rows: int, function: Callable[[Tensor], Any]) -> _Graph:
        """The captured function for inputs like this one; the least recently used one makes room for a new one."""
        key = (rows, *like.shape)
        graph = self._graphs.pop(key, None)
        if graph is None:
            if len(self._graphs) == _MAX_GRAPHS:
                del self._graphs[next(iter(self._graphs))]
            graph = _Graph(function, like, self.device)
        self._graphs[key] = graph
        return graph

    def _located(self, rows: int, frame: Tensor) -> Tensor:
        """One frame for the first `rows` targets: (rows,5) float64, box xywh and score."""
        cfg, box = self.cfg, self._targets.box[:rows]
        search, _ = ops.crop(frame, box, cfg.search_factor, cfg.search_size, self.network.dtype)
        score_map, size_map, offset_map = self._maps(rows, search)
        found, score = ops.decode(score_map, size_map, offset_map, self.window)
        moved = ops.advance(found, box, (frame.shape[0], frame.shape[1]), cfg.search_factor, CLIP_MARGIN)
        return torch.cat((moved, score[:, None].double()), dim=1)


class _Graph:
    """A function of one tensor as a CUDA graph. Its outputs are overwritten by the next call."""

    def __init__(self, function: Callable[[Tensor], Any], like: Tensor, device: torch.device):
        self._device = device
        # Pageable memory would make the upload wait for the GPU and the GPU for the upload.
        self._pinned = torch.zeros(like.shape, dtype=like.dtype, pin_memory=True) if not like.is_cuda else None
        self._input = torch.zeros(like.shape, dtype=like.dtype, device=device)
        with torch.cuda.device(device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                # Kernels are compiled, and libraries make their workspaces, at the first calls: not while capturing.
                for _ in range(2):
                    function(self._input)
            torch.cuda.current_stream().wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            # Other threads may use the GPU meanwhile.
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                if self._pinned is not None:
                    self._input.copy_(self._pinned, non_blocking=True)
                self._output = function(self._input)

    def __call__(self, value: Tensor) -> Any:
        with torch.cuda.device(self._device):
            if self._pinned is not None:
                # The upload is part of the graph; whoever called before has waited for that frame's result.
                self._pinned.copy_(value)
            else:
                self._input.copy_(value, non_blocking=True)
            self._graph.replay()
        return self._output


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """The device a name stands for, with its index; "auto" is the first CUDA GPU if there is one, else the CPU.

    Raises:
        ValueError: not a device, or not one that is here.
    """
    available = torch.cuda.is_available()
    if device == "auto":
        return torch.device("cuda", torch.cuda.current_device()) if available else torch.device("cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError:
        resolved = None
    if resolved is None or resolved.type not in ("cpu", "cuda"):
        raise ValueError(f"device {str(device)!r} is not supported: choose auto, cpu, cuda or cuda:N")
    if resolved.type == "cpu":
        return torch.device("cpu")
    if not available:
        raise ValueError(f"device {str(device)!r} is not here: PyTorch {torch.__version__} finds no CUDA GPU")
    index = torch.cuda.current_device() if resolved.index is None else resolved.index
    if index >= torch.cuda.device_count():
        raise ValueError(f"device {str(device)!r} is not here: PyTorch finds {torch.cuda.device_count()} CUDA GPUs")
    return torch.device("cuda", index)


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype a name stands for. "auto" is float16 on a GPU; on a CPU bfloat16 where it is fast, else float32.

    Raises:
        ValueError: none of `DTYPES`, or int8 where there are no kernels for it.
    """
    if dtype == "auto":
        if device.type == "cuda":
            return torch.float16
        return torch.bfloat16 if fast_bfloat16() else torch.float32
    resolved = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if resolved is None or resolved not in DTYPES.values():
        raise ValueError(f"dtype {str(dtype)!r} is not supported: choose auto, {', '.join(DTYPES)}")
    reason = why_no_int8(device) if resolved == torch.int8 else None
    if reason is not None:
        raise ValueError(f"dtype int8 cannot run here ({reason}): choose auto or another dtype")
    return resolved


def hann_window(grid: int) -> Tensor:
    """The weight (F,F) of every place of the score map: 0.5 (1 - cos(2 pi i / (F+1))), i = 1..F, along both sides.

    Source: published `hann2d` with `centered=True`; falls off towards the border, never to zero.
    """
    side = 0.5 * (1 - torch.cos(2 * pi / (grid + 1) * torch.arange(1, grid + 1).float()))
    return side[:, None] * side[None, :]


def _as_tensor(frame: np.ndarray) -> Tensor:
    # torch takes neither negative strides (a BGR frame flipped by [..., ::-1]) nor read-only memory.
    return torch.from_numpy(np.require(frame, requirements=["C", "W"]))
