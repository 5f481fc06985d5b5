"""`ostrack-fast export`: the network as a file for other runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._lists import MOST
from ._outputs import check_outputs
from ._weights import Config


def export(
    format: Annotated[
        str, typer.Option(help="onnx, pt2 (torch.export) or aoti (torch.export, compiled for this machine).")
    ] = "onnx",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file; by default the weights' name with .onnx or .pt2.")
    ] = None,
    weights: Annotated[str, typer.Option(help="Name of weights that ship with the package, or a file.")] = "small",
    config: Config = None,
    dtype: Annotated[str, typer.Option(help="float32, float16, or for ONNX int8.")] = "float32",
    elimination: Annotated[bool, typer.Option(help="Eliminate candidates, or keep them all.")] = True,
    batch: Annotated[int, typer.Option(min=0, max=MOST, help="Targets at once; 0 for a number that may change.")] = 1,
    layout: Annotated[
        str, typer.Option(help="ostrack; opencv-dnn: operators that OpenCV reads; opencv: for cv2.TrackerVit.")
    ] = "ostrack",
    device: Annotated[str, typer.Option(help="Where a pt2 or aoti file runs: cpu, cuda or cuda:N.")] = "cpu",
) -> None:
    """Write the network to a file for ONNX Runtime, OpenVINO, TensorRT, OpenCV or PyTorch without this package.

    The file is run and compared with the model before it appears.
    """
    from ..export import FORMATS, export_model
    from ..model import OSTrack
    from ..model.hub import short_name

    if output is None:
        suffix = FORMATS[format].suffix if format in FORMATS else ""
        output = Path(short_name(weights) + suffix)
    check_outputs((output,), sources=(weights,))
    model = OSTrack.from_pretrained(weights, config)
    deviation = export_model(model, output, format, dtype, elimination, batch or None, layout, device)
    print(
        f"{output}: {output.stat().st_size / 1e6:.1f} MB; run on the shipped video it differs from the model by "
        f"{deviation.score:.1g} in score and {deviation.box:.1g} pixels of the crop"
    )
