"""How many kernels a frame launches: at batch 1 a GPU waits for them more than for their arithmetic."""

import os
from collections import Counter

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1 is set: the interpreter has launchers of its own", allow_module_level=True)

import launches


def test_a_frame_of_the_published_network(monkeypatch):
    """The upload of the frame comes before these. Five launches are each of the twelve blocks'."""
    launched = launches.of_a_frame(monkeypatch, "ostrack_256_ce")
    assert Counter(launched) == {
        "_crop": 1, "_linear": 49, "_attention_forward": 12, "_eliminate": 3, "_restore": 1, "_conv3x3": 4,
        "_decode": 1, "_update_box": 1,
        # PyTorch's: the template's rows; patches, their layout; the head's last convolution and what follows it.
        "copy_": 1, "clone": 4, "_to_copy": 2, "addmm": 1, "sigmoid": 1, "clamp": 1, "cat": 1,
        # Arrival counters of the score.
        "zeros": 3,
    }  # fmt: skip
    assert len(launched) == 86
