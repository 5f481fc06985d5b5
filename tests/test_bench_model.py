"""The suites of the whole network and the whole frame, their memory, and the README's waterfall."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ostrack_fast.bench import suite_model, suite_track
from ostrack_fast.bench.case import Options, WrongResult
from ostrack_fast.bench.suite_model import peak_bytes

RESULTS = Path(__file__).parents[1] / "bench" / "results"
NEEDS_SOURCES = pytest.mark.skipif(not RESULTS.exists(), reason="there are no bench/ and docs/ beside these tests")
CPU = torch.device("cpu")
QUICK = Options(CPU, ("small",), (1,), quick=True)


@pytest.mark.slow
@pytest.mark.parametrize("suite", [suite_model, suite_track])
def test_implementations_agree(suite):
    (case,) = suite.cases(QUICK)
    torch.manual_seed(0)
    with torch.inference_mode():
        comparison = case.build()
        assert next(iter(comparison.implementations)) == "upstream" and len(comparison.implementations) >= 2
        assert not comparison.skipped
        for name in comparison.implementations:
            comparison.check(name)
        comparison.expected[0].mul_(2)
        with pytest.raises(WrongResult, match="upstream"):
            comparison.check("upstream")


@pytest.mark.slow
def test_memory_of_an_implementation():
    upstream, engine = (peak_bytes("small", 1, name, CPU) for name in ("upstream", "+ engine"))
    if upstream is None:
        pytest.skip("this system does not tell a process's peak memory")
    weights = 4 * 15_700_000
    assert weights < upstream < 10 * weights
    assert weights < engine < 10 * weights
    assert peak_bytes("small", 1, "torch.compile", CPU) is None


@NEEDS_SOURCES
def test_waterfall(tmp_path):
    """Tables and picture from files of results, in a copy of what it writes to."""
    for folder in ("bench/results", "docs"):
        (tmp_path / folder).mkdir(parents=True)
    for page in ("README.md", "docs/speed.md"):
        (tmp_path / page).write_text("before\n<!-- waterfall -->\nold\n<!-- end of waterfall -->\nafter\n")

    def implementation(seconds, ratio, memory):
        return {"seconds": seconds, "speedup_over": {"upstream": ratio}, "peak_bytes": memory}

    result = {
        "op": "model", "shape": "small: 96 and 192 px", "batch": 1, "device": "cpu", "threads": 1,
        "implementations": {
            "upstream": implementation(0.06, 1.0, 70_000_000),
            "+ engine": implementation(0.02, 3.0, 69_000_000),
            "torch.compile": implementation(0.05, 1.2, None),
        },
    }  # fmt: skip
    document = {"machine": {"cpu": "Some CPU, family 1", "gpus": []}, "results": [result, {**result, "batch": 8}]}
    (tmp_path / "bench/results/some-model.json").write_text(json.dumps(document))
    gpu = {"machine": {"cpu": "Some CPU", "gpus": ["Some GPU"]}, "results": [{**result, "device": "cuda:0"}]}
    (tmp_path / "bench/results/gpu-model.json").write_text(json.dumps(gpu).replace("0.02", "0.0005"))
    other = json.dumps(document).replace("small: 96", "large: 384")
    (tmp_path / "bench/results/z-model.json").write_text(other)
    (tmp_path / "bench/README.md").write_text("before\n<!-- tables -->\nold\n<!-- end of tables -->\nafter\n")
    command = [sys.executable, RESULTS.parents[1] / "docs/measured.py", tmp_path]
    subprocess.run(command, check=True)
    text = (tmp_path / "README.md").read_text()
    assert text.startswith(
        "before\n<!-- waterfall -->\n| small, batch 1 | Some GPU: ms | x upstream | Some CPU, 1 thread: ms |"
    )
    assert "| + engine | 0.50 | 3.00 | 20.0 | 3.00 | 69 |" in text
    assert "| *torch.compile* | 50.0 | 1.20 | 50.0 | 1.20 |  |" in text
    assert "old" not in text and text.endswith("<!-- end of waterfall -->\nafter\n")
    assert "large" not in text
    page = (tmp_path / "docs/speed.md").read_text()
    assert text.removesuffix("<!-- end of waterfall -->\nafter\n") in page and "| large, batch 1 |" in page
    assert (tmp_path / "docs/waterfall.png").stat().st_size > 1000
    for path in (tmp_path / "bench/results").iterdir():
        path.unlink()
    failed = subprocess.run(command, capture_output=True, text=True)
    assert failed.returncode and "ostrack-fast bench model" in failed.stderr


@NEEDS_SOURCES
def test_committed_results_are_what_the_pages_show(tmp_path):
    """The script changes nothing where the pages are as it wrote them."""
    root = RESULTS.parents[1]
    pages = ("README.md", "docs/speed.md", "bench/README.md")
    for page in pages:
        (tmp_path / page).parent.mkdir(exist_ok=True)
        shutil.copy(root / page, tmp_path / page)
    shutil.copytree(RESULTS, tmp_path / "bench/results")
    subprocess.run([sys.executable, root / "docs/measured.py", tmp_path], check=True)
    row = (
        "| 64+256 tokens, 12 heads of 64 | 1 | bfloat16 | native | 902 (74%) | 2.57 | 5.02 | 471 (72%) | 2.50 | 4.99 |"
    )
    assert row in (tmp_path / "bench/README.md").read_text()
    for page in pages:
        assert (tmp_path / page).read_text() == (root / page).read_text(), page


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_every_committed_result_has_todays_names(path):
    for result in json.loads(path.read_text()).get("results", []):
        for name, one in result["implementations"].items():
            assert {"seconds", "roofline_fraction", "speedup_over", "peak_bytes"} <= set(one), name
        assert next(iter(result["implementations"])) == "upstream"
