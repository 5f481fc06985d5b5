"""What might run instead of the engine: onnxruntime, OpenVINO and frozen torch.compile, on the same weights."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from ostrack_fast.export.exporter import export_model
from ostrack_fast.export.formats import INPUTS, open_session, run_session
from ostrack_fast.model import OSTrack

from .case import Makers
from .networks import Maps, Run, torch_best


def peers(model: OSTrack, z: Tensor, x: Tensor) -> Makers:
    """For images (B,3,Z,Z) and (B,3,X,X) on the CPU; onnxruntime and OpenVINO embed the template in every frame.

    Each uses as many threads as PyTorch does when it is built. What builds one raises ImportError where a package is
    missing, and ArithmeticError where the export is refused because its results differ.
    """
    folder = TemporaryDirectory()

    @cache
    def exported(dtype: str) -> Path:
        path = Path(folder.name) / f"{dtype}.onnx"
        export_model(model, path, dtype=dtype, batch=len(x))
        return path

    def onnxruntime(dtype: str) -> Run:
        return partial(run_session, open_session(exported(dtype), threads=torch.get_num_threads()), z, x)

    def openvino(precision: str, quantizes: bool = False) -> Run:
        return _openvino(exported("float32"), z, x, precision, quantizes)

    single = torch.float32
    return {
        "torch.compile, frozen": (partial(torch_best, model, z, x, single, frozen=True), single),
        "onnxruntime float32": (partial(onnxruntime, "float32"), single),
        "onnxruntime int8": (partial(onnxruntime, "int8"), torch.int8),
        "OpenVINO float32": (partial(openvino, "f32"), single),
        "OpenVINO bfloat16": (partial(openvino, "bf16"), torch.bfloat16),
        "OpenVINO int8": (partial(openvino, "f32", quantizes=True), torch.int8),
    }


def _openvino(path: Path, z: Tensor, x: Tensor, precision: str, quantizes: bool) -> Run:
    import openvino

    images = dict(zip(INPUTS, (z.numpy(), x.numpy()), strict=True))
    network = openvino.Core().read_model(path)
    if quantizes:
        import nncf

        network = nncf.quantize(network, nncf.Dataset([images]), model_type=nncf.ModelType.TRANSFORMER)
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
    settings["INFERENCE_NUM_THREADS"] = str(torch.get_num_threads())
    request: Any = openvino.Core().compile_model(network, "CPU", settings).create_infer_request()

    def run() -> Maps:
        request.infer(images)
        score, size, offset = (torch.from_numpy(request.get_output_tensor(i).data) for i in range(3))
        return score, size, offset

    return run
