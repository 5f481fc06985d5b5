"""The network as a file for other runtimes: ONNX, `torch.export` and AOTInductor packages.

>>> export_model(OSTrack.from_pretrained("small"), "small.onnx")
>>> Tracker.from_onnx("small.onnx")
"""

from __future__ import annotations

from .exporter import Deviation, export_model
from .formats import FORMATS, LAYOUTS
from .network import ExportNetwork

__all__ = ["FORMATS", "LAYOUTS", "Deviation", "ExportNetwork", "export_model"]
