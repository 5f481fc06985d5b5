"""How many kernels a frame launches: at batch 1 a GPU waits for them more than for their arithmetic."""

import os
from collections import Counter

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1 is set: the interpreter has launchers of its own", allow_module_level=True)

import launches

from ostrack_fast.kernels import linear


def test_a_frame_of_the_published_network(monkeypatch):
    """The upload comes before these; five launches are each of the twelve blocks'. All kernels can begin early: one
    that does not would stop the chain, as what follows it begins when it has ended.
    """
    launched = launches.of_a_frame(monkeypatch, "ostrack_256_ce")
    assert Counter(launched) == {
        "_crop early": 1, "_linear early": 49, "_attention_forward early": 12, "_eliminate early": 3,
        "_restore early": 1, "_conv3x3 early": 4, "_frame_tail early": 1,
    }  # fmt: skip
    assert len(launched) == 71 and launched[-1] == "_frame_tail early"


def test_a_frame_whose_gemms_are_the_librarys(monkeypatch):
    """What the table of tiles may choose by size: two launches for qkv, proj and fc2, three for fc1."""
    monkeypatch.setattr(linear, "library_is_faster", lambda problem, device: True)
    launched = Counter(launches.of_a_frame(monkeypatch, "ostrack_256_ce"))
    assert (launched["_linear early"], launched["addmm"], launched["add"]) == (0, 49, 25)
    assert (launched["_normalize early"], launched["gelu"]) == (24, 12)
