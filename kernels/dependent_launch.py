"""Programmatic dependent launch: a kernel is put on the multiprocessors while the one before it still ends.

Every kernel of a frame first fetches what no kernel writes (the beginning of its weights), then waits until the kernels
before it have ended and their results can be seen, and only then touches other memory. Directly after that it lets the
next kernel come. So the order of a stream holds, whatever is launched before and after: a kernel ends after its wait,
and therefore after everything that came before it.

Source: CUDA programming guide, "Programmatic Dependent Launch and Synchronization"; PTX `griddepcontrol`, compute
capability 9.0 and newer.
"""

import functools

import torch
import triton
import triton.language as tl


@functools.cache
def _is_able(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def options(device: torch.device) -> dict[str, bool]:
    """What a launch on this device is given: the kernel's PDL, and the launcher's attribute where it is on."""
    return {"PDL": True, "launch_pdl": True} if _is_able(device) else {"PDL": False}


@triton.jit
def wait_for_inputs(PDL: tl.constexpr):
    """Wait for the kernels before, then let the next one come. Nothing that a kernel writes may be read before."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def fetch_weights(weight, rows, first, K: tl.constexpr, DEPTH: tl.constexpr, PDL: tl.constexpr):
    """Bring the rows of a weight, from `first` on and DEPTH deep, to the L2 cache; K is the row's length."""
    if PDL:
        # 64 bytes of half precision apart: two sectors of the cache.
        places = tl.minimum(first + 32 * tl.arange(0, DEPTH // 32), K - 1)
        pointers = (weight + rows[:, None] + places[None, :]).to(tl.int64)
        tl.inline_asm_elementwise(
            "{ prefetch.global.L2 [$1]; mov.u32 $0, 0; }", "=r,l", [pointers], dtype=tl.int32, is_pure=False, pack=1
        )
