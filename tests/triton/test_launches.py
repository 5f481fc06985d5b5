"""How many kernels a frame launches: at batch 1 a GPU waits for them more than for their arithmetic."""

import os
from collections import Counter

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1 is set: the interpreter has launchers of its own", allow_module_level=True)

import launches

from ostrack_fast import switches
from ostrack_fast.kernels import linear


def test_a_frame_of_the_published_network(monkeypatch):
    """The upload of the frame comes before these. Five launches are each of the twelve blocks'."""
    launched = launches.of_a_frame(monkeypatch, "ostrack_256_ce")
    assert Counter(launched) == {
        "_crop": 1, "_linear": 49, "_attention_forward": 12, "_eliminate": 3, "_restore": 1, "_conv3x3": 4,
        "_decode": 1, "_update_box": 1,
        # PyTorch's: the patches' layout; the head's last convolution and what follows it.
        "clone": 4, "_to_copy": 2, "addmm": 1, "sigmoid": 1, "clamp": 1, "cat": 1,
    }  # fmt: skip
    assert len(launched) == 82


def test_a_frame_with_every_switch_on(monkeypatch):
    """`frame_tail` saves ten launches, `crop_patches` one, the other switches none. All kernels can begin early: one
    that does not would stop the chain, as what follows it begins when it has ended.
    """
    launched = launches.of_a_frame(monkeypatch, "ostrack_256_ce", ",".join(f"{name}=on" for name in switches.DEFAULTS))
    assert Counter(launched) == {
        "_crop early": 1, "_linear early": 49, "_attention_forward early": 12, "_eliminate early": 3,
        "_restore early": 1, "_conv3x3 early": 4, "_frame_tail early": 1,
    }  # fmt: skip
    assert len(launched) == 71 and launched[-1] == "_frame_tail early"


@pytest.mark.parametrize(
    ("turned", "count"),
    [
        ("frame_tail=on", 72),
        ("crop_patches=on", 81),
        ("norm_rows=on,dependent_launch=on,wide_slices=on,key_groups=on", 82),
    ],
)
def test_what_each_switch_saves(turned, count, monkeypatch):
    """At most 73 launches once the frame's tail is one; the switches of the last line launch the same kernels."""
    assert len(launches.of_a_frame(monkeypatch, "ostrack_256_ce", turned)) == count


def test_a_frame_whose_gemms_are_the_librarys(monkeypatch):
    """What the table of tiles may choose by size: two launches for qkv, proj and fc2, three for fc1."""
    monkeypatch.setattr(linear, "library_is_faster", lambda problem, device: True)
    launched = Counter(launches.of_a_frame(monkeypatch, "ostrack_256_ce"))
    # Of the head's last convolution the addition is in the matmul.
    assert (launched["_linear"], launched["addmm"], launched["add"]) == (0, 49 + 1, 25)
    assert (launched["_normalize"], launched["gelu"]) == (24, 12)
