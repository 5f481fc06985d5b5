"""The ops: everything the kernels do. Each checks its arguments, picks an implementation and calls it.

Letters: B batch, H heads, D head dimension, C = H*D, T template tokens, S search tokens, N = T+S, K kept,
F side of the search token grid, Z side of a crop in pixels.
"""

from . import layers, reference
from .attention import attention
from .crop import crop
from .decode import decode
from .eliminate import eliminate
from .gelu import gelu
from .gelu_matmul import gelu_linear
from .matmul import linear, matmul
from .registry import BACKENDS, LAYERS, OPS, declared, forced_backend, report, use
from .restore import restore
from .update_box import update_box

advance = update_box  # the name it had up to version 0.1

__all__ = [
    "BACKENDS",
    "LAYERS",
    "OPS",
    "advance",
    "attention",
    "crop",
    "declared",
    "decode",
    "eliminate",
    "forced_backend",
    "gelu",
    "gelu_linear",
    "layers",
    "linear",
    "matmul",
    "reference",
    "report",
    "restore",
    "update_box",
    "use",
]
