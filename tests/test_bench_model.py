"""The suites of the whole network and the whole frame, their memory, and the README's waterfall."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ostrack_fast.benchmark import model, track
from ostrack_fast.benchmark.case import Options, WrongResult
from ostrack_fast.benchmark.memory import peak_bytes

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
QUICK = Options(CPU, ("small",), (1,), quick=True)


@pytest.mark.slow
@pytest.mark.parametrize("suite", [model, track])
def test_contenders_agree(suite):
    (case,) = suite.cases(QUICK)
    torch.manual_seed(0)
    with torch.inference_mode():
        contest = case.build()
        assert next(iter(contest.contenders)) == "published" and len(contest.contenders) >= 2
        for name in contest.contenders:
            contest.check(name)
        contest.expected[0].mul_(2)
        with pytest.raises(WrongResult, match="published"):
            contest.check("published")


@pytest.mark.slow
def test_memory_of_a_contender():
    published, engine = (peak_bytes("small", 1, name, CPU) for name in ("published", "+ engine"))
    if published is None:
        pytest.skip("this system does not tell a process's peak memory")
    weights = 4 * 15_700_000
    assert weights < published < 10 * weights
    assert weights < engine < 10 * weights
    assert peak_bytes("small", 1, "torch.compile", CPU) is None


def test_waterfall(tmp_path):
    """Table and picture from a file of results, in a copy of what it writes to."""
    for folder in ("bench/results", "docs"):
        (tmp_path / folder).mkdir(parents=True)
    script = ROOT / "bench" / "waterfall.py"
    if not script.exists():
        pytest.skip("the tests run without the checkout they came from")
    shutil.copy(script, tmp_path / "bench")
    (tmp_path / "README.md").write_text("before\n<!-- waterfall -->\nold\n<!-- end of waterfall -->\nafter\n")

    def contender(seconds, ratio, memory):
        return {"seconds": seconds, "speed_over": {"published": ratio}, "peak_bytes": memory}

    result = {
        "op": "model", "shape": "small: 96 and 192 px", "batch": 1, "device": "cpu", "threads": 1,
        "contenders": {
            "published": contender(0.06, 1.0, 70_000_000),
            "+ engine": contender(0.02, 3.0, 69_000_000),
            "torch.compile": contender(0.05, 1.2, None),
        },
    }  # fmt: skip
    document = {"machine": {"cpu": "Some CPU, family 1", "gpus": []}, "results": [result, {**result, "batch": 8}]}
    (tmp_path / "bench/results/some-model.json").write_text(json.dumps(document))
    subprocess.run([sys.executable, tmp_path / "bench" / "waterfall.py"], check=True)
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("before\n<!-- waterfall -->\n| small, batch 1 | Some CPU, 1 thread: ms | x published |")
    assert "| + engine | 20.0 | 3.00 | 69 |" in text and "| *torch.compile* | 50.0 | 1.20 |  |" in text
    assert "old" not in text and text.endswith("<!-- end of waterfall -->\nafter\n")
    assert (tmp_path / "docs/waterfall.png").stat().st_size > 1000
    (tmp_path / "bench/results/some-model.json").unlink()
    failed = subprocess.run([sys.executable, tmp_path / "bench" / "waterfall.py"], capture_output=True, text=True)
    assert failed.returncode and "ostrack-fast bench model" in failed.stderr
