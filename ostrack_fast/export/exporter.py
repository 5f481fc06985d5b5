"""Model in, checked file out."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .. import ops
from ..boxes import image_to_crop
from ..config import ModelConfig
from ..devices import resolve_device
from ..files import write_atomically
from ..inputs import check_flag
from ..model import OSTrack
from ..video import open_source
from .formats import FORMATS, LAYOUTS, Maps
from .network import ExportNetwork
from .opencv_network import OpenCVNetwork


class Deviation(NamedTuple):
    """How far an exported file's answers are from the model's in float32, on two frames of the shipped video.

    score: largest difference of the score maps. box: of the box at the model's best cell, in pixels of the crop.
    """

    score: float
    box: float


# What rounding explains, several times over; a wrong operator is off by far more.
_LIMITS = {"float32": Deviation(1e-3, 0.1), "float16": Deviation(0.02, 1.0), "int8": Deviation(0.1, 4.0)}


def export_model(
    model: OSTrack,
    path: str | Path,
    format: str = "onnx",
    dtype: str = "float32",
    candidate_elimination: bool = True,
    batch: int | None = 1,
    layout: str = "ostrack",
    device: str = "cpu",
) -> Deviation:
    """Write the network to a file, run the file, and compare it with the model before the file appears.

    The file takes `template` (B,3,Z,Z) and `search` (B,3,X,X), float32 RGB crops with ImageNet's normalization, and of
    a model with `template_box` also `template_box` (B,4), the target's xywh in units of the template crop (the layout
    "opencv" has no such input, as `cv2.TrackerVit` cannot give it: the target counts as square). It gives `score_map`
    (B,1,F,F), `size_map` and `offset_map` (B,2,F,F), float32, as `OSTrack.forward` does.

    Args:
        model: is read and not changed.
        format: "onnx", "pt2" (a `torch.export` program) or "aoti" (a `torch.export` program that AOTInductor compiled
            for this machine).
        dtype: of weights and matmuls: "float32", "float16", or for ONNX "int8" (linear layers quantized dynamically).
        candidate_elimination: False keeps all candidates.
        batch: B, or None for a batch size that may change from call to call.
        layout: of ONNX: "ostrack"; "opencv-dnn", of operators that OpenCV 4.6 and later read; or "opencv", the same
            with the outputs' names and the crop sizes of `cv2.TrackerVit`.
        device: on which a pt2 or aoti file runs.

    Returns:
        How far the file's answers were from the model's.

    Raises:
        TypeError: `candidate_elimination` is no flag.
        ValueError: choices that do not go together, or a model that the layout does not fit.
        ImportError: a package of the extra `export` is missing.
        ArithmeticError: the file deviates more than its dtype explains; nothing is written.
    """
    check_flag("candidate_elimination", candidate_elimination)
    _check_choices(model.cfg, format, dtype, batch, layout)
    on = resolve_device(device)
    weights = torch.float16 if dtype == "float16" else torch.float32
    kind = OpenCVNetwork if layout.startswith("opencv") else ExportNetwork
    network = kind(model, weights, candidate_elimination).eval().to(on)
    sample = _sample(model.cfg)[: 3 if model.cfg.template_box and layout != "opencv" else 2]
    inputs = [each.repeat(2 if batch is None else batch, *[1] * (each.dim() - 1)) for each in sample]
    dynamic = None if batch is not None else [{0: torch.export.Dim("batch")}] * len(inputs)
    with torch.no_grad():
        program = torch.export.export(network, tuple(each.to(on) for each in inputs), dynamic_shapes=dynamic)
    facts = {"config": model.cfg.to_dict(), "dtype": dtype, "batch": batch, "layout": layout}
    expected = _maps(ExportNetwork(model, candidate_elimination=candidate_elimination), inputs)
    found: list[Deviation] = []

    def write(temporary: str) -> None:
        FORMATS[format].write(program, temporary, facts)
        run = FORMATS[format].load(temporary)
        with torch.no_grad():
            score, size, offset = (each.cpu() for each in run(*(each.to(on) for each in inputs)))
        found.append(_deviation((score, size, offset), expected, model.cfg.search_size))
        limit = _LIMITS[dtype]
        if not (found[0].score <= limit.score and found[0].box <= limit.box):
            raise ArithmeticError(
                f"the exported file differs from the model by {found[0].score:.2g} in score and {found[0].box:.2g} "
                f"pixels, more than {dtype} explains ({limit.score} and {limit.box}); nothing was written"
            )

    write_atomically(path, write)
    return found[0]


def _check_choices(cfg: ModelConfig, format: str, dtype: str, batch: int | None, layout: str) -> None:
    for name, value, known in (("format", format, FORMATS), ("dtype", dtype, _LIMITS), ("layout", layout, LAYOUTS)):
        if value not in known:
            raise ValueError(f"unknown {name} {value!r}: choose {', '.join(known)}")
    if batch is not None and (type(batch) is not int or batch < 1):
        raise ValueError(f"batch={batch!r} must be a whole number from 1, or None for one that may change")
    if format != "onnx" and (dtype == "int8" or layout != "ostrack"):
        raise ValueError(f"int8 and the OpenCV layout exist for ONNX only, not for {format}")
    if layout != "ostrack" and (batch != 1 or dtype == "int8"):
        raise ValueError("OpenCV needs batch=1 and float32 or float16")
    if layout == "opencv":
        sizes = (cfg.template_size, cfg.search_size, cfg.patch_size, cfg.template_factor, cfg.search_factor)
        if sizes != (128, 256, 16, 2.0, 4.0):
            raise ValueError(
                "cv2.TrackerVit crops templates of 128 pixels at factor 2 and search regions of 256 pixels at factor "
                f"4, this model takes {sizes[0]} at {sizes[3]:g} and {sizes[1]} at {sizes[4]:g}"
            )


def _sample(cfg: ModelConfig) -> tuple[Tensor, Tensor, Tensor]:
    """A template and a search crop of the shipped video, normalized, and the box in the template; batches of 1."""
    assets = resources.files("ostrack_fast") / "assets"
    facts = json.loads((assets / "demo.json").read_text(encoding="utf-8"))
    box = torch.tensor([facts["box"]], dtype=torch.float64, device="cpu")
    with resources.as_file(assets / "demo.mp4") as path:
        frames = iter(open_source(path))
        first, second = (torch.from_numpy(next(frames)) for _ in range(2))
    template, scale = ops.crop(first, box, cfg.template_factor, cfg.template_size)
    search, _ = ops.crop(second, box, cfg.search_factor, cfg.search_size)
    return template, search, image_to_crop(box, box, scale, cfg.template_size).float()


@torch.no_grad()
def _maps(network: ExportNetwork, inputs: list[Tensor]) -> Maps:
    return network.eval()(*inputs)


def _deviation(found: Maps, expected: Maps, side: int) -> Deviation:
    """Compare maps of search crops of `side` pixels; the boxes in the cell that the expected score map puts first."""
    only_best = (expected[0] == expected[0].amax((2, 3), keepdim=True)).to(expected[0].dtype)
    boxes = [ops.decode(only_best, size, offset)[0] for _, size, offset in (found, expected)]
    return Deviation(float((found[0] - expected[0]).abs().max()), float((boxes[0] - boxes[1]).abs().max()) * side)
