"""The script for machines with a GPU, as far as a CPU goes: its slices, its state, its table."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "bench" / "gpu_check.py"
pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="there is no bench/ beside these tests")
CPU = ("--device", "cpu", "--installed")


def check(*arguments, **environment):
    clean = {name: value for name, value in os.environ.items() if name != "OUT"}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=clean | {name: str(value) for name, value in environment.items()},
    )


def rows(done):
    """The table's: name to the first word of its status."""
    lines = done.stdout.splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith("step "))
    width = lines[begin].index("status")
    return {line[:width].strip(): line[width:].split()[0] for line in lines[begin + 1 : -1]}


def test_every_asked_for_check_is_a_step():
    done = check("--list", *CPU)
    assert done.returncode == 0, done.stderr
    for what in (
        "build", "parity: attention", "parity: layers", "golden: float32", "half precision", "memcheck: native",
        "racecheck: native", "initcheck: native", "graph replay", "training: parity", "training: 200 steps",
        "bench ops: conv3x3", "bench ops: restore_conv3x3",
        "bench model", "bench track", "bench training",
    ):  # fmt: skip
        assert what in done.stdout
    assert "needs a GPU" in done.stdout
    listed = check("--list", "--installed").stdout
    assert "needs a GPU" not in listed
    for network in ("ostrack_256_ce", "ostrack_384_ce"):
        for batch in (1, 8, 64):
            assert f"bench model: {network}, batch {batch} " in listed


def test_files_that_the_steps_name_are_there():
    for line in check("--list", "--device", "cpu").stdout.splitlines():
        for word in line.split():
            if word.endswith(".py") and "=" not in word:
                assert (SCRIPT.parents[1] / word).is_file(), line


def test_slices_go_on_where_the_last_one_stopped(tmp_path):
    state, out = tmp_path / "state", tmp_path / "out"
    out.mkdir()
    arguments = (*CPU, "--slice", 0, "--only", "kernels", "--state", state)
    first = check(*arguments, OUT=out)
    assert first.returncode == 0, first.stdout + first.stderr
    statuses = {"packages": "ok", "build": "skipped", "kernels: native": "ok", "kernels: triton": "skipped"}
    assert rows(first) == statuses
    document = json.loads((out / "gpu_check.json").read_text())
    assert document["steps"]["kernels: native"]["found"].endswith("0 wrong")
    assert document["steps"]["kernels: triton"]["found"] == "needs a GPU"
    log = state / "logs" / document["steps"]["kernels: native"]["log"]
    assert "bench/checks/kernels.py" in log.read_text().splitlines()[0]
    with tarfile.open(out / "gpu_check.tar.gz") as archive:
        assert f"gpu_check/logs/{log.name}" in archive.getnames()

    again = check(*arguments)
    assert "kernels: native ..." not in again.stdout and rows(again) == statuses
    assert again.stdout.splitlines()[-1] == "0 failed, 0 to do"
    wider = (*CPU, "--slice", 0, "--only", "n", "--state", state)
    more = check(*wider)
    assert rows(more)["info"] == "ok" and rows(more)["kernels: native"] == "ok"
    assert list(rows(more).values()).count("to") > 5
    assert more.stdout.splitlines()[-1].endswith("run again to continue")


def test_another_tree_starts_over_and_a_failure_stops_no_other_step(tmp_path):
    arguments = (*CPU, "--slice", 0, "--only", "info", "--state", tmp_path)
    path = tmp_path / "state.json"
    failed = {"status": "failed", "seconds": 1.0, "found": "exit code 1", "tries": 0, "log": "x"}
    path.write_text(json.dumps({"tree": "of yesterday", "device": "cpu", "steps": {"info": failed}}))
    done = check(*arguments)
    assert "starting over" in done.stdout and rows(done)["info"] == "ok"

    document = json.loads(path.read_text())
    document["steps"]["info"] = failed
    path.write_text(json.dumps(document))
    done = check(*arguments)
    assert done.returncode == 1 and rows(done)["info"] == "failed" and "1 failed, 0 to do" in done.stdout
    assert rows(check(*arguments, "--retry"))["info"] == "ok"


def test_a_step_that_fails_is_told_with_its_reason(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import gpu_check

    def found(code, limit=None):
        step = gpu_check.Step("a step", (sys.executable, "-c", code), 1)
        status, _, text = gpu_check.run(step, tmp_path / "log", limit)
        return status, text

    assert found("print('one'); print('two things')") == ("ok", "two things")
    assert found("raise ValueError('no such thing')") == ("failed", "exit code 1: ValueError: no such thing")
    assert found("print('FAILED tests/x.py::y'); print('1 failed'); exit(1)")[1] == (
        "exit code 1: 1 failed; FAILED tests/x.py::y"
    )
    assert found("import time; time.sleep(600)", limit=0.1)[0] == "cut off"
    none = gpu_check.Step("pytest", (*gpu_check.PYTEST, str(Path(__file__)), "-k", "no_such_test"), 1)
    assert gpu_check.run(none, tmp_path / "log", None)[0] == "failed"


def test_a_benchmark_is_summed_up(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import gpu_check

    def result(ours, peak):
        contenders = {"published": {"seconds": 8.0, "peak_bytes": 100}, "ours": {"seconds": ours, "peak_bytes": peak}}
        return {"contenders": contenders}

    found = gpu_check.summary([result(2.0, 40), result(4.0, 50), result(1.0, 30)])
    assert found == "3 cases; ours x4.00, memory of ours 40%"
    assert gpu_check.summary([result(2.0, None)]) == "1 cases; ours x4.00"
