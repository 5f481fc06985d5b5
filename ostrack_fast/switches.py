"""Speed-ups for GPUs that no GPU has measured yet. Each can be switched off and on, so that one run compares both.

`OSTRACK_FAST_SWITCHES="norm_rows=on"` changes the defaults below. As soon as a measurement has decided, a switch is
deleted together with the slower side's code. `bench/results/TUNING.md` holds what each is expected to bring.
"""

from __future__ import annotations

import os

DEFAULTS = {
    # Half-precision rows and their statistics, written by the epilogue before, instead of LayerNorm in the main loop.
    "norm_rows": False,
    # Programmatic dependent launch of a frame's kernels, which fetch their first weights before they wait.
    "dependent_launch": False,
    # All partials of a split-K tile read at once, as far as registers go, instead of 16 rows at a time.
    "wide_slices": False,
    # Two groups of warps for each block of attention, each of which sees half of the keys, where blocks are few.
    "key_groups": False,
    # The search crop written in the order in which patch embedding reads it, instead of a copy between the two.
    "crop_patches": False,
    # One kernel from the head's last features to the box in the frame, instead of ten.
    "frame_tail": False,
}
VARIABLE = "OSTRACK_FAST_SWITCHES"
_STATES = {"on": True, "off": False}


def enabled(name: str) -> bool:
    """Whether a speed-up is on.

    Raises:
        ValueError: the environment variable names an unknown switch or state.
    """
    states = dict(DEFAULTS)
    for entry in filter(None, os.environ.get(VARIABLE, "").split(",")):
        key, _, state = entry.strip().partition("=")
        if key not in DEFAULTS or state not in _STATES:
            raise ValueError(
                f"{VARIABLE} holds {entry.strip()!r}: write NAME=on or NAME=off, with a name of {', '.join(DEFAULTS)}"
            )
        states[key] = _STATES[state]
    return states[name]
