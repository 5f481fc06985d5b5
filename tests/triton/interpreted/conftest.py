import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

import interpreter_repair  # noqa: F401 (importing it repairs the interpreter)


@pytest.fixture(autouse=True)
def poisoned_memory():
    """`torch.empty` returns NaN: what a kernel forgets to write shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
