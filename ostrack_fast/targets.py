"""The targets that an engine follows, as tensors of a row each."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Targets(NamedTuple):
    """One row for each target: `tokens` and `qkv` as in `Template`, mask (n,T) bool, box (n,4) float64 xywh, pixels.

    Copies and pickles hold their own numbers, also those sent to another process: PyTorch would put tensors into memory
    that both processes write to.
    """

    tokens: Tensor
    qkv: Tensor
    mask: Tensor
    box: Tensor

    def rows(self, rows: slice) -> Targets:
        """The targets of these rows, as views."""
        return Targets(*(each[rows] for each in self))

    def __reduce__(self) -> tuple:
        arrays = [each.cpu().view(torch.uint8).numpy() for each in self]
        return _restored, (arrays, [each.dtype for each in self], self.box.device)


def _restored(arrays: list[np.ndarray], dtypes: list[torch.dtype], device: torch.device) -> Targets:
    with torch.inference_mode(False):
        copies = [torch.tensor(array, dtype=torch.uint8, device="cpu") for array in arrays]
        return Targets(*(copy.view(dtype).to(device) for copy, dtype in zip(copies, dtypes, strict=True)))
