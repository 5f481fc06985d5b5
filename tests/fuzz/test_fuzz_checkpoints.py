"""Checkpoints with anything in them: read right, or refused by name; see `tests/model/test_hostile_files.py`."""

import time

from ..model.test_hostile_files import MAKERS, good, try_files

__all__ = ["good"]


def test_checkpoints(good, long, counts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Beyond those that the other test tries; the long mode's are new ones.
    first = time.time_ns() if long else 1_000_000
    try_files(good, tmp_path / "file.pth", range(first, first + (10_000 if long else 2 * len(MAKERS))), counts)
