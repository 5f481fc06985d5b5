"""An exported ONNX file in OpenVINO, whose packages the extra `peers` installs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .formats import INPUTS, Maps, Run


def load_openvino(
    path: str | Path, precision: str = "f32", calibration: Sequence[Tensor] | None = None, threads: int = 0
) -> Run:
    """What runs an ONNX file on the CPU with OpenVINO.

    Args:
        precision: of the arithmetic, "f32" or "bf16".
        calibration: inputs of the network, by which its weights and activations are quantized to int8; None: they
            are not.
        threads: 0 leaves their number to OpenVINO.

    Raises:
        ImportError: openvino is not installed, or nncf, which quantizes.
    """
    import openvino

    network = openvino.Core().read_model(path)
    if calibration is not None:
        import nncf

        data = nncf.Dataset([_feed(calibration)])
        network = nncf.quantize(network, data, model_type=nncf.ModelType.TRANSFORMER)
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
    settings["INFERENCE_NUM_THREADS"] = str(threads)
    request = openvino.Core().compile_model(network, "CPU", settings).create_infer_request()

    def run(*inputs: Tensor) -> Maps:
        request.infer(_feed(inputs))
        score, size, offset = (torch.from_numpy(request.get_output_tensor(i).data) for i in range(3))
        return score, size, offset

    return run


def _feed(inputs: Sequence[Tensor]) -> dict:
    return {name: each.numpy() for name, each in zip(INPUTS, inputs, strict=False)}
