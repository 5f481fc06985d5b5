"""Every way to write a line of ground truth, every encoding, and what is said of the others."""

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostrack_fast.data.truth import format_boxes, present, read_boxes


@pytest.mark.parametrize("line", ["1,2,3,4", "1\t2\t3\t4", "1 2 3 4", " 1.0, 2.0 ,3.0,  4e0 ", "1,\t2,\t3,\t4,"])
def test_separators(tmp_path, line):
    (tmp_path / "boxes.txt").write_text(f"\ufeff{line}\r\n{line}", encoding="utf-8")
    assert read_boxes(tmp_path / "boxes.txt").tolist() == [[1, 2, 3, 4]] * 2


@pytest.mark.parametrize("line", ["", "  ", "nan", "NaN,NaN,NaN,NaN", "nan nan nan nan", "0,0,0,0", "5,5,0,7", ",,,"])
def test_absent(tmp_path, line):
    (tmp_path / "boxes.txt").write_text(f"1,2,3,4\n{line}\n1,2,3,4\n")
    boxes = read_boxes(tmp_path / "boxes.txt")
    assert boxes.shape == (3, 4) and np.isnan(boxes[1]).all() and not np.isnan(boxes[[0, 2]]).any()


@pytest.mark.parametrize("line", ["1,2,3", "1,2,3,4,5,6,7,8", "1,2,three,4", "1,nan,3,4", "1,2,inf,4", "x y w h"])
def test_bad_line_is_named(tmp_path, line):
    (tmp_path / "boxes.txt").write_text(f"1,2,3,4\n{line}\n")
    with pytest.raises(ValueError, match=r"boxes\.txt, line 2: .*four") as error:
        read_boxes(tmp_path / "boxes.txt")
    assert line in str(error.value)


@given(st.lists(st.tuples(*[st.floats(0.5, 5000)] * 4) | st.just((np.nan,) * 4), min_size=1))
def test_written_boxes_read_back(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("boxes") / "a.txt"
    path.write_text(format_boxes(np.array(rows)))
    np.testing.assert_allclose(read_boxes(path), np.array(rows), atol=5.1e-4)


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp1252", "ascii"]
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encodings_and_line_ends(tmp_path, encoding, end):
    (tmp_path / "boxes.txt").write_bytes(end.join(["1,2,3,4", "", "5,6,7,8", ""]).encode(encoding))
    boxes = read_boxes(tmp_path / "boxes.txt", 3)
    assert boxes[[0, 2]].tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]] and np.isnan(boxes[1]).all()


@pytest.mark.parametrize(
    "word", ["nan", "NaN", "-nan", "+nan", "-nan(ind)", "nan(snan)", "1.#QNAN", "-1.#IND", "1.#QNAN0", "-1.#IND00"]
)
def test_spellings_of_nan(tmp_path, word):
    (tmp_path / "boxes.txt").write_text(f"1,2,3,4\n{word},{word}\t{word} {word}\n")
    boxes = read_boxes(tmp_path / "boxes.txt")
    assert boxes.shape == (2, 4) and np.isnan(boxes[1]).all()


@pytest.mark.parametrize("line", ["-1,-1,-1,-1", "0 0 0 0", "1,2,0,4", "1,2,3,-4"])
def test_a_side_that_is_not_positive_is_absent(tmp_path, line):
    (tmp_path / "boxes.txt").write_text(line)
    assert np.isnan(read_boxes(tmp_path / "boxes.txt")).all()


@pytest.mark.parametrize(
    "line",
    ["1,2,inf,4", "1.#INF,2,3,4", "1e400,2,3,4", "1e300,2,3,4", "1_0,2,3,4", "0x10,2,3,4", "\u0661,2,3,4", "1;2;3",
     "1,2,3,4\x0c5", "-nan(ind),1,2,3", "1..2,2,3,4", "x" * 500],
)  # fmt: skip
def test_what_is_no_box(tmp_path, line):
    (tmp_path / "boxes.txt").write_text(f"1,2,3,4\n{line}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"boxes\.txt, line 2: .*four") as error:
        read_boxes(tmp_path / "boxes.txt")
    assert len(str(error.value)) < 250 + len(str(tmp_path))


@pytest.mark.parametrize("data", [b"\xe9\n", "\u00e9t\u00e9\n".encode("latin-1"), b"\xff\xff1,2,3,4\n"])
def test_foreign_characters_are_a_bad_line(tmp_path, data):
    (tmp_path / "boxes.txt").write_bytes(b"1,2,3,4\n" + data)
    with pytest.raises(ValueError, match=r"boxes\.txt, line 2"):
        read_boxes(tmp_path / "boxes.txt")


@pytest.mark.parametrize(
    "data", [b"\0" * 80, b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"\xff\xfe1\0,", b"\xff\xfe\0\xd8", b"1,2,3,4\n\0\0\0\n"]
)
def test_what_is_no_text_is_named(tmp_path, data):
    (tmp_path / "boxes.txt").write_bytes(data)
    with pytest.raises(ValueError, match=r"boxes\.txt is not a text file"):
        read_boxes(tmp_path / "boxes.txt")


def test_pipes_folders_and_missing_files(tmp_path):
    os.mkfifo(tmp_path / "boxes.txt")
    with pytest.raises(ValueError, match=r"boxes\.txt is not a regular file"):
        read_boxes(tmp_path / "boxes.txt")
    with pytest.raises(ValueError, match="is not a regular file"):
        read_boxes(tmp_path)
    with pytest.raises(FileNotFoundError, match="none"):
        read_boxes(tmp_path / "none.txt")


def test_an_empty_file_has_no_boxes(tmp_path):
    (tmp_path / "boxes.txt").write_text("")
    assert read_boxes(tmp_path / "boxes.txt").shape == (0, 4)


def test_present_refuses_other_shapes():
    assert present([[0, 0, 1, 1], [0, 0, 0, 1], [np.nan] * 4, [0, 0, np.inf, 1]]).tolist() == [
        True,
        False,
        False,
        False,
    ]
    with pytest.raises(ValueError, match=r"shape \(n, 4\)"):
        present([[1, 2, 3]])
