"""Every environment variable is in one table, in the documentation and in `ostrack-fast info`."""

import re
from pathlib import Path

import pytest

from ostrack_fast import environment
from ostrack_fast.cli import info

ROOT = Path(__file__).parents[1]
NAMES = {variable.name for variable in environment.VARIABLES}
SOURCES = ("*.py", "bench/*.py", "bench/*.txt", "kernels/*.py", "ostrack_fast/**/*.py", "csrc/**/*.*", "tests/**/*.py")


@pytest.fixture(scope="module")
def read():
    """{name: files that read it}: text between quotes, which is how each of these languages names a variable."""
    if not (ROOT / "csrc").exists():
        pytest.skip("not a source checkout")
    table = ROOT / "ostrack_fast" / "environment.py"
    found = {}
    for pattern in SOURCES:
        for path in ROOT.glob(pattern):
            if path.is_file() and path not in (table, Path(__file__).resolve()):
                for name in re.findall(r"[\"'](OSTRACK_FAST_[A-Z_]+)[\"']", path.read_text(encoding="utf-8")):
                    found.setdefault(name, set()).add(str(path.relative_to(ROOT)))
    return found


def test_whatever_is_read_is_in_the_table_and_the_other_way_round(read):
    assert set(read) == NAMES, {name: read.get(name) for name in set(read) ^ NAMES}


def test_no_variable_of_another_prefix_is_read_unnamed():
    """What the package itself reads besides: the display, and which process of torchrun's it is."""
    foreign = set()
    for path in (ROOT / "ostrack_fast").rglob("*.py"):
        foreign |= set(re.findall(r"environ(?:\.get\(|\[)\"([A-Z_]+)\"", path.read_text(encoding="utf-8")))
    assert foreign - NAMES == {"DISPLAY", "WAYLAND_DISPLAY", "RANK", "LOCAL_RANK", "WORLD_SIZE"}


def test_the_page_has_the_table():
    page = ROOT / "docs" / "environment.md"
    if not page.exists():
        pytest.skip("there is no docs/ beside these tests")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.read_text().splitlines()]
    expected = [[f"`{name}`", meaning, default, when] for name, default, when, meaning in environment.VARIABLES]
    assert [row for row in rows if row and row[0].startswith("`OSTRACK")] == expected


def test_info_tells_what_is_set(monkeypatch, capsys):
    monkeypatch.setenv("OSTRACK_FAST_BACKEND", "reference")
    monkeypatch.setenv("OSTRACK_FAST_BACKENDS", "triton")
    info.info()
    out = capsys.readouterr().out
    assert re.search(r"OSTRACK_FAST_BACKEND +reference", out)
    assert "triton (nothing reads this variable)" in out
