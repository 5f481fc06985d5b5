"""Runs `interpreted/` in a process where Triton interprets kernels instead of compiling them."""

import re

import pytest

pytest.importorskip("triton", reason="Triton is not installed")


def test_kernels_under_the_interpreter(interpreting_process):
    if interpreting_process is None:
        pytest.skip("TRITON_INTERPRET=1 is set: the tests in interpreted/ run in this process")
    output, _ = interpreting_process.communicate()
    print(output)
    assert interpreting_process.returncode == 0, output[-4000:]
    assert re.search(r"[1-9]\d* passed", output), output[-4000:]
