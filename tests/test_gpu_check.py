"""The script for machines with a GPU, as far as a CPU goes: its plan, its limits, what it keeps, its table."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "bench" / "gpu_check.py"
pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="there is no bench/ beside these tests")


def check(*arguments, **environment):
    clean = {name: value for name, value in os.environ.items() if name != "OUT"}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=clean | {name: str(value) for name, value in environment.items()},
    )


@pytest.fixture
def gpu_check(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import gpu_check

    return gpu_check


@pytest.fixture
def steps(gpu_check):
    return gpu_check.steps("cuda", SCRIPT.parent)


def test_the_plan_fits_the_time_and_speed_comes_early(gpu_check, steps):
    first, second = (gpu_check.chosen_steps(steps, call, None) for call in (1, 2))
    assert sum(step.seconds for step in first) <= 420 and sum(step.seconds for step in second) <= 240
    names = [step.name for step in first]
    assert sum(step.seconds for step in first[: names.index("graph time")]) <= 300
    assert names == [
        "build", "error", "graph time", "nodes", "upstream", "frames", "tests", "batches", "waterfall",
    ]  # fmt: skip
    assert [step.name for step in second] == [
        "library", "tune ostrack_256_ce", "tune ostrack_384_ce", "graph time, tuned", "nodes, tuned",
        "frames, tuned", "training speed", "training",
    ]  # fmt: skip


def test_what_takes_longer_runs_only_by_name(gpu_check, steps):
    for name in (
        "soak", "accuracy", "racecheck native", "initcheck triton", "memcheck native, all ops", "bench ops linear",
        "bench ops restore_conv3x3", "bench model ostrack_384_ce", "bench track small", "bench training ostrack_256_ce",
    ):  # fmt: skip
        (step,) = gpu_check.chosen_steps(steps, 1, name)
        assert step.name == name and step.call == 0 and step.seconds > 60
    failed = check("--only", "soap")
    assert failed.returncode and "no step soap: choose from build" in failed.stderr


def test_what_the_steps_name_is_there(gpu_check, steps):
    for step in steps + gpu_check.steps("cpu", SCRIPT.parent):
        for word in " ".join(step.command).replace("'", " ").split():
            if word.endswith(".py") and "=" not in word:
                assert (SCRIPT.parents[1] / word).is_file(), step.name
            if re.fullmatch(r"ostrack_fast(\.\w+)+", word):
                assert importlib.util.find_spec(word), step.name
    tests = next(step.command for step in steps if step.name == "tests")
    test = tests[tests.index("--deselect") + 1]
    file, _, function = test.partition("::")
    assert f"def {function}(" in (SCRIPT.parents[1] / file).read_text()


def test_a_rehearsal_keeps_everything(tmp_path):
    """Real sections on the CPU: a log and numbers a step, one document, the table last, skips with their reason."""
    done = check("--device", "cpu", "--only", "build;bench ops attention;memcheck native, all ops", OUT=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads((tmp_path / "gpu_check.json").read_text())
    statuses = {name: one["status"] for name, one in document["steps"].items()}
    sanitizer = "memcheck native, all ops"
    assert statuses == {"build": "skipped", "bench ops attention": "ok", sanitizer: "skipped"}
    results = document["results"]["bench_ops_attention"]["results"]
    shapes = [f"36+{tokens} tokens, 6 heads of 64{score}" for tokens in (144, 71) for score in ("", ", no score")]
    assert {result["shape"] for result in results} == set(shapes)
    for result in results:
        assert {"native", "torch"} <= set(result["implementations"])
        assert all(one["seconds"] > 0 for one in result["implementations"].values())
    assert document["results"]["bench_ops_attention"]["machine"]["cpu"]
    log = tmp_path / document["steps"]["bench ops attention"]["log"]
    assert "ostrack_fast.cli bench ops --op attention" in log.read_text().splitlines()[0]
    lines = done.stdout.splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith("step "))
    assert [line.split("  ")[0] for line in lines[begin + 1 : -1]] == ["build", sanitizer, "bench ops attention"]
    assert "torch" in lines[begin + 3] and "us" in lines[begin + 3] and "needs a GPU" in lines[begin + 2]
    assert lines[-1].startswith("0 failed or cut off; everything is in")


def run(gpu_check, tmp_path, code, *arguments, call=1, limit=60.0):
    """Status and what was found of a step that runs this code."""
    return gpu_check.run(
        gpu_check.Step("a step", 1, (sys.executable, "-c", code, *arguments), call), tmp_path / "log", limit
    )


def test_a_step_that_fails_is_told_with_its_reason(tmp_path, gpu_check):
    def found(code, limit=60.0):
        return run(gpu_check, tmp_path, code, limit=limit)

    assert found("print('one'); print('two things')") == ("ok", "two things")
    assert found("raise ValueError('no such thing')") == ("failed", "exit code 1: ValueError: no such thing")
    assert found("print('FAILED tests/x.py::y'); print('1 failed'); exit(1)")[1] == (
        "exit code 1: 1 failed; FAILED tests/x.py::y"
    )
    assert found("print('[gw0] PASSED x'); print('[gw1] FAILED y', flush=True); import time; time.sleep(600)", 3.0) == (
        "cut off", "not done at its limit; 1 PASSED, 1 FAILED",
    )  # fmt: skip
    none = gpu_check.Step("pytest", 1, (*gpu_check.PYTEST, str(Path(__file__)), "-k", "no_such_test"))
    assert gpu_check.run(none, tmp_path / "log", 60.0)[0] == "failed"


def test_time_that_one_step_saves_another_may_use_and_no_more(tmp_path, gpu_check):
    """The second step gets what the first left; the third, after a step cut off, its own limit."""
    plan = [
        gpu_check.Step("quick", 8, (sys.executable, "-c", "print('quick')")),
        gpu_check.Step("skipped", 1000, ("false",), skip="not here"),
        gpu_check.Step("needs more", 1, (sys.executable, "-c", "import time; time.sleep(2.5); print('slept')")),
        gpu_check.Step("hangs", 1, (sys.executable, "-c", "import time; time.sleep(600)")),
        gpu_check.Step("last", 10, (sys.executable, "-c", "print('last')")),
    ]
    found = {}
    gpu_check.run_plan(plan, tmp_path, found)
    assert [one["status"] for one in found.values()] == ["ok", "skipped", "ok", "cut off", "ok"]
    assert set(json.loads((tmp_path / "gpu_check.json").read_text())["steps"]) == {step.name for step in plan}


def test_tiles_are_used_only_once_they_are_there(tmp_path, gpu_check):
    """A tune that was cut off before its first GEMM must not make every later step fail."""
    code = "import os; print('tiles', os.environ.get('OSTRACK_FAST_TUNING'))"
    tiles = tmp_path / "tiles.json"
    assert run(gpu_check, tmp_path, code, "--json", call=2)[1] == "tiles None"
    tiles.write_text("[]")
    assert run(gpu_check, tmp_path, code, "--json", call=2)[1] == f"tiles {tiles}"
    assert run(gpu_check, tmp_path, code, "--json")[1] == run(gpu_check, tmp_path, code, call=2)[1] == "tiles None"


def test_a_benchmark_is_summed_up(tmp_path, gpu_check):
    """Every implementation's time, from the file that the command writes: here a real one, of the smallest op."""
    command = (sys.executable, "-m", "ostrack_fast.cli", "bench", "ops", "--op", "decode", "--dtype", "float32")
    step = gpu_check.Step("bench", 1, (*command, "--quick", "--device", "cpu", "--json", str(tmp_path / "x.json")))
    status, text = gpu_check.run(step, tmp_path / "log", 600.0)
    assert status == "ok", (tmp_path / "log").read_text()
    assert re.fullmatch(r"12 x 12, batch 1, float32: upstream \d+, torch \d+, native \d+ us", text)
