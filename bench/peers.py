"""What might run instead of the engine: onnxruntime, OpenVINO and frozen torch.compile, on the same weights."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from ostrack_fast.export.exporter import export_model
from ostrack_fast.export.formats import INPUTS, open_session, run_session
from ostrack_fast.model import OSTrack

from .networks import Maps, Run, torch_best

_PACKAGES = {"onnxruntime": ("onnx", "onnxscript", "onnxruntime"), "OpenVINO": ("onnx", "onnxscript", "openvino")}


def missing() -> dict[str, str]:
    """The peers that cannot take part here, and why."""
    found = {}
    for peer, packages in {**_PACKAGES, "OpenVINO int8": ("nncf",)}.items():
        absent = [name for name in packages if importlib.util.find_spec(name) is None]
        if absent:
            found[peer] = f"{', '.join(absent)} is not installed: pip install 'ostrack_fast[peers]'"
    return found


def peers(
    model: OSTrack, z: Tensor, x: Tensor, skipped: dict[str, str] | None = None
) -> Iterator[tuple[str, Run, torch.dtype]]:
    """(name, run, compute dtype) of every peer that is installed, for images (B,3,Z,Z) and (B,3,X,X) on the CPU.

    Args:
        skipped: takes the names of those whose export was refused, and why.

    Each uses as many threads as PyTorch does now. onnxruntime and OpenVINO embed the template in every frame.
    """
    absent = missing()
    yield "torch.compile, frozen", torch_best(model, z, x, torch.float32, frozen=True), torch.float32
    with TemporaryDirectory() as folder:
        path = Path(folder) / "float32.onnx"
        if "onnxruntime" not in absent:
            for name, dtype in (("float32", torch.float32), ("int8", torch.int8)):
                file = path.with_stem(name)
                try:
                    export_model(model, file, dtype=name, batch=len(x))
                except ArithmeticError as error:  # random weights, whose candidates are nearly alike, in int8
                    if skipped is not None:
                        skipped[f"onnxruntime {name}"] = str(error)
                    continue
                yield (
                    f"onnxruntime {name}",
                    partial(run_session, open_session(file, threads=torch.get_num_threads()), z, x),
                    dtype,
                )
        if "OpenVINO" not in absent:
            if not path.exists():
                export_model(model, path, batch=len(x))
            yield from _openvino(path, z, x, "OpenVINO int8" not in absent)


def _openvino(path: Path, z: Tensor, x: Tensor, quantizes: bool) -> Iterator[tuple[str, Run, torch.dtype]]:
    import openvino

    images = dict(zip(INPUTS, (z.numpy(), x.numpy()), strict=True))
    network = openvino.Core().read_model(path)
    variants = {"float32": (network, "f32", torch.float32), "bfloat16": (network, "bf16", torch.bfloat16)}
    if quantizes:
        import nncf

        quantized = nncf.quantize(network, nncf.Dataset([images]), model_type=nncf.ModelType.TRANSFORMER)
        variants["int8"] = quantized, "f32", torch.int8
    for name, (each, precision, dtype) in variants.items():
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
        settings["INFERENCE_NUM_THREADS"] = str(torch.get_num_threads())
        request = openvino.Core().compile_model(each, "CPU", settings).create_infer_request()

        def run(request: Any = request) -> Maps:
            request.infer(images)
            score, size, offset = (torch.from_numpy(request.get_output_tensor(i).data) for i in range(3))
            return score, size, offset

        yield f"OpenVINO {name}", run, dtype
