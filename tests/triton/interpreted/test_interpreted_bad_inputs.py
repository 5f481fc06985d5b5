"""The tests of `tests/ops/test_bad_inputs.py`, of which this module has a copy, with Triton's interpreter."""

import importlib.util
from pathlib import Path

import pytest

from ostrack_fast import ops

_path = Path(__file__).parents[2] / "ops" / "test_bad_inputs.py"
_spec = importlib.util.spec_from_file_location("bad_inputs", _path)
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
globals().update({name: value for name, value in vars(_module).items() if name.startswith("test_")})


@pytest.fixture
def backend():
    with ops.use("triton"):
        yield "triton"
