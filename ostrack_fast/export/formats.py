"""The files an exported network comes as: each is written by one function and run by another."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

from . import opencv_network

INPUTS = ("template", "search", "template_box")  # the last one where the configuration has `template_box`
OUTPUTS = ("score_map", "size_map", "offset_map")
# The outputs' names; "opencv" has those that OpenCV's `TrackerVit` asks its network for.
LAYOUTS = {"ostrack": OUTPUTS, "opencv-dnn": OUTPUTS, "opencv": ("output1", "output2", "output3")}

METADATA = "ostrack_fast"  # key of the JSON in an ONNX file's metadata

Maps = tuple[Tensor, Tensor, Tensor]
Run = Callable[..., Maps]


class Format(NamedTuple):
    """`write(program, path, facts)` writes a file; `load(path)` returns what runs it on `INPUTS`."""

    suffix: str
    write: Callable[[ExportedProgram, str, Mapping[str, Any]], None]
    load: Callable[[str], Run]


def write_onnx(program: ExportedProgram, path: str, facts: Mapping[str, Any]) -> None:
    """An ONNX file, its weights inside. `facts` go to its metadata; `facts["dtype"]` "int8" quantizes it."""
    require_onnx()
    opencv = facts["layout"].startswith("opencv")
    onnx_program = torch.onnx.export(
        program,
        input_names=INPUTS[: len(program.graph_signature.user_inputs)],
        output_names=LAYOUTS[facts["layout"]],
        opset_version=18 if opencv else 20,  # 20 is the first with Gelu
        custom_translation_table=opencv_network.translations()
        if opencv
        else {torch.ops.aten.sort.stable: _stable_sort},
        verbose=False,
    )
    assert onnx_program is not None  # it is None only for TorchScript
    onnx_program.model.metadata_props[METADATA] = json.dumps(dict(facts))
    onnx_program.save(path, external_data=False)
    if facts["dtype"] == "int8":
        quantize_linear_layers(path)


def _stable_sort(values: Any, *, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
    """`Tensor.sort(stable=True)`: ONNX's TopK puts equal values in the order of their indices, as its text says."""
    from onnxscript import opset18

    count: Any = opset18.Constant(value_ints=[values.shape[dim]])
    return opset18.TopK(values, count, axis=dim, largest=int(descending), sorted=1)


def quantize_linear_layers(path: str | Path, left_out: float = 0.5) -> None:
    """Quantize an ONNX file's linear layers to int8 in place: weights now, inputs as they come.

    `left_out` is the part of them, counted from the first, that stays float32. Weights get one scale for every output
    and seven bits: without VNNI, x86 processors add pairs of products in 16 bits, which eight would overflow. An input
    has one scale, which a few large channels set in the first blocks: with the shipped weights the first half of the
    blocks caused nine tenths of the error.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(path)
    # The preparation that onnxruntime asks for, shape inference and constant folding, the exporter has done.
    onnx.helper.set_model_props(
        model, {**{p.key: p.value for p in model.metadata_props}, "onnx.quant.pre_process": "onnxruntime.quant"}
    )
    weights = {each.name for each in model.graph.initializer}
    linear = [node.name for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in weights]
    quantize_dynamic(
        model,
        path,
        op_types_to_quantize=["MatMul"],
        nodes_to_quantize=linear[int(left_out * len(linear)) :],
        per_channel=True,
        reduce_range=True,
        weight_type=QuantType.QInt8,
    )


def load_onnx(path: str) -> Run:
    """What runs an ONNX file on the CPU with onnxruntime."""
    session = open_session(path)

    def run(*inputs: Tensor) -> Maps:
        return run_session(session, *inputs)

    return run


def open_session(path: str | Path, providers: Sequence[str] | None = None, threads: int = 0) -> Any:
    """An onnxruntime session.

    Args:
        providers: as onnxruntime names them, by default the CPU's.
        threads: on the CPU; 0 leaves their number to onnxruntime.

    Raises:
        ValueError: a provider that onnxruntime does not know, or none that is here: it would take the CPU's instead.
    """
    require_onnx()
    import onnxruntime

    here, known = onnxruntime.get_available_providers(), onnxruntime.get_all_providers()
    providers = [providers] if isinstance(providers, str) else providers or ["CPUExecutionProvider"]
    names = [each[0] if isinstance(each, tuple) and each else each for each in providers]
    if not all(name in known for name in names) or not any(name in here for name in names):
        raise ValueError(f"providers={providers!r}: onnxruntime has {', '.join(here)} here")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(path), options, providers=providers)


def run_session(session: Any, *inputs: Tensor) -> Maps:
    """The maps score, size and offset for float32 CPU tensors: (B,3,Z,Z), (B,3,X,X) and, where it has one, (B,4)."""
    names = (each.name for each in session.get_inputs())
    feed = dict(zip(names, (each.numpy() for each in inputs), strict=True))
    arrays: list[np.ndarray] = session.run(None, feed)
    score, size, offset = map(torch.from_numpy, arrays)
    return score, size, offset


def require_onnx() -> None:
    """Raise ImportError, saying how to install it, if an ONNX package is missing."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            raise ImportError(f"{name} is not installed: pip install 'ostrack_fast[export]'")


def _write_pt2(program: ExportedProgram, path: str, facts: Mapping[str, Any]) -> None:
    package = BytesIO()
    torch.export.save(program, package, extra_files={f"{METADATA}.json": json.dumps(dict(facts))})
    _write_package(package, path)


def _load_pt2(path: str) -> Run:
    return torch.export.load(path).module()


def _write_aoti(program: ExportedProgram, path: str, facts: Mapping[str, Any]) -> None:
    metadata, package = {METADATA: json.dumps(dict(facts))}, BytesIO()
    torch._inductor.aoti_compile_and_package(
        program, package_path=package, inductor_configs={"aot_inductor.metadata": metadata}
    )
    _write_package(package, path)


def _write_package(package: BytesIO, path: str) -> None:
    """Write what PyTorch made in memory: its own writer of files ends the process where the disk is full."""
    Path(path).write_bytes(package.getbuffer())


def _load_aoti(path: str) -> Run:
    return torch._inductor.aoti_load_package(path)


FORMATS: dict[str, Format] = {
    "onnx": Format(".onnx", write_onnx, load_onnx),
    "pt2": Format(".pt2", _write_pt2, _load_pt2),
    "aoti": Format(".pt2", _write_aoti, _load_aoti),
}
