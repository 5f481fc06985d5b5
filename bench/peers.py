"""What might run instead of the engine: onnxruntime, OpenVINO and frozen torch.compile, on the same weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from ostrack_fast.export.exporter import export_model
from ostrack_fast.export.formats import open_session, quantize_linear_layers, run_session
from ostrack_fast.export.openvino import load_openvino
from ostrack_fast.model import OSTrack
from ostrack_fast.model.vit import square_box
from ostrack_fast.ops.layers import fast_bfloat16

from .case import Makers
from .networks import Run, torch_best


def peers(model: OSTrack, z: Tensor, x: Tensor) -> Makers:
    """For images (B,3,Z,Z) and (B,3,X,X) on the CPU; onnxruntime and OpenVINO embed the template in every frame.

    Each uses as many threads as PyTorch does when it is built. What builds one raises ImportError where a package is
    missing, and ArithmeticError where the export is refused because its results differ.
    """
    folder, threads, single = TemporaryDirectory(), torch.get_num_threads(), torch.float32
    # A network that is told the target's box counts it as square where it is not, as the others' here.
    inputs = (z, x, square_box(model.cfg).expand(len(x), -1)) if model.cfg.template_box else (z, x)

    @cache
    def exported(dtype: str) -> Path:
        path = Path(folder.name) / f"{dtype}.onnx"
        export_model(model, path, dtype=dtype, batch=len(x))
        return path

    def quantized_whole() -> Path:
        path = Path(folder.name) / "whole.onnx"
        quantize_linear_layers(copyfile(exported("float32"), path), left_out=0.0)
        return path

    def onnxruntime(file: Callable[[], Path]) -> Run:
        return partial(run_session, open_session(file(), threads=threads), *inputs)

    def openvino(precision: str, calibration: tuple[Tensor, ...] | None = None) -> Run:
        return partial(load_openvino(exported("float32"), precision, calibration, threads), *inputs)

    return {
        "torch.compile, frozen": (partial(torch_best, model, z, x, single, frozen=True), single),
        "onnxruntime float32": (partial(onnxruntime, partial(exported, "float32")), single),
        "onnxruntime int8": (partial(onnxruntime, partial(exported, "int8")), torch.int8),
        # `export` leaves the first half of the layers in float32, which is more exact.
        "onnxruntime int8, all layers": (partial(onnxruntime, quantized_whole), torch.int8),
        "OpenVINO float32": (partial(openvino, "f32"), single),
        "OpenVINO bfloat16": (partial(openvino, "bf16"), torch.bfloat16),
        # What is not quantized is bfloat16 where that is faster.
        "OpenVINO int8": (partial(openvino, "bf16" if fast_bfloat16() else "f32", inputs), torch.int8),
    }
