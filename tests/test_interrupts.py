"""Signals that stop the work: what is one wish, and what is another."""

import os
import signal

import pytest

from ostrack_fast import interrupts
from ostrack_fast.interrupts import Interrupts, interrupt_once

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows cannot send itself these signals")


@pytest.fixture
def handlers(monkeypatch):
    """Those that the system begins with, then those of the command line; put back afterwards."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in interrupts.STOPPING}
    monkeypatch.setattr(interrupts, "_last_wish", float("-inf"))
    interrupt_once()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
def test_a_request_repeated_behind_the_work_does_not_disturb_the_way_out():
    """It would come while the generator of frames is finalized, where Python prints a traceback and goes on."""
    with Interrupts() as asked:
        signal.raise_signal(signal.SIGINT)
    assert asked.requested
    for number in interrupts.STOPPING:
        signal.raise_signal(number)


@pytest.mark.usefixtures("handlers")
def test_a_later_signal_is_another_wish(monkeypatch):
    with Interrupts():
        signal.raise_signal(signal.SIGINT)
    monkeypatch.setattr(interrupts, "_ONE_WISH", 0.0)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
