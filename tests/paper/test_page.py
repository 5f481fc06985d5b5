"""docs/paper.md says what the committed results say, and these are of the code as it is."""

import importlib.util
from dataclasses import asdict
from pathlib import Path

import pytest

from ostrack_fast.config import get_config
from ostrack_fast.paper import figures, table3, table4, table5
from ostrack_fast.paper.costs import count_macs

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def made():
    spec = importlib.util.spec_from_file_location("claims", DOCS / "claims.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_results_say(made):
    results = made.read(DOCS / "paper")
    written = (DOCS / "paper.md").read_text(encoding="utf-8")
    assert written == made.page(results), "docs/paper.md is stale: run python docs/claims.py"
    results["table3"]["rows"][0]["macs"]["layers"] += 10**9
    assert written != made.page(results)


def test_the_results_are_of_this_code(made):
    results = made.read(DOCS / "paper")
    for row in results["table3"]["rows"]:
        assert row["macs"] == asdict(count_macs(get_config(row["preset"]))), "run paper table3 again"
        assert row["published"] == asdict(table3.PUBLISHED[row["preset"]])
    assert {row["network"] for row in results["table5"]["costs"]} == set(table5.PUBLISHED)
    ours = next(row for row in results["table5"]["costs"] if row["network"] == "ostrack")
    assert ours["both"] == asdict(count_macs(get_config("ostrack_256"))), "run paper table5 again"
    for name, (_, auc) in table4.PUBLISHED.items():
        assert f"{auc} ({name})" in (DOCS / "paper.md").read_text(encoding="utf-8")
    assert {"OSTrack-256", "OSTrack-384"} <= {name for name, *_ in figures.PUBLISHED}
    for name in results["figures"]["files"]:
        assert (DOCS / "paper" / name).is_file()
