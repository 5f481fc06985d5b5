"""Files that appear whole or not at all."""

from pathlib import Path

import pytest

from ostrack_fast.files import write_atomically


def test_a_failed_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "deep" / "file.bin"
    write_atomically(target, lambda path: Path(path).write_bytes(b"old"))

    def fail(path):
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(target, fail)
    assert target.read_bytes() == b"old"
    assert [path.name for path in target.parent.iterdir()] == ["file.bin"]


def test_the_temporary_file_has_the_suffix_that_writers_look_at(tmp_path):
    seen = []

    def write(path):
        seen.append(Path(path).suffix)
        Path(path).write_bytes(b"x")

    write_atomically(tmp_path / "picture.png", write)
    assert seen == [".png"]
