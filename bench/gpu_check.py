"""Everything that only a GPU can show, in two calls that each end in time: is it right, how fast, what tuning brings.

    bench/gpu_check.sh                  # the first call, at most 7 minutes: build, errors, speeds, all GPU tests
    bench/gpu_check.sh --call 2         # the second, at most 4: tiles tuned, the same speeds, training
    bench/gpu_check.sh --only soak      # steps by name; some, which take longer, run only so
    bench/gpu_check.sh --device cpu     # a rehearsal: the same steps at small sizes, as far as a CPU can run them

A step may run until the limits of the steps before it and its own are over, so that what one saves another may use, and
a call never outlasts their sum. Every step's log and numbers lie in the folder $OUT, without it in build/gpu_check, as
soon as they are there; gpu_check.json holds all of them. The first call leaves the compiled library there as well: put
into ostrack_fast/ again, it saves the second call the build. Needs nothing but the standard library, so that it can say
what else is missing.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "ostrack_fast"
WORK = ROOT / "build" / "gpu_check"  # what a machine need not hand out: compiled Triton kernels
COMMAND = (sys.executable, "-m", "ostrack_fast.cli")
PYTEST = (sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", f"--rootdir={ROOT}")


@dataclass(frozen=True)
class Step:
    """One thing to run.

    Args:
        seconds: its limit, see above.
        call: the call it belongs to; 0 where it runs only when asked for by name.
        skip: why it cannot run here.
    """

    name: str
    seconds: int
    command: tuple[str, ...]
    call: int = 0
    skip: str | None = None

    @property
    def stem(self) -> str:
        """Of the files that it leaves."""
        return "".join(character if character.isalnum() else "_" for character in self.name)

    def environment(self, out: Path) -> dict[str, str]:
        found = os.environ | {"PYTHONUNBUFFERED": "1"}
        if (PACKAGE / "bench").exists():  # linked in place
            found["PYTHONPATH"] = str(ROOT)
        # Of the tiles that an earlier step measured, if there are some already.
        if self.call != 1 and "--json" in self.command and (out / "tiles.json").exists():
            found["OSTRACK_FAST_TUNING"] = str(out / "tiles.json")
        return found


def steps(device: str, out: Path) -> list[Step]:
    """All steps of the plan, in order."""
    missing = {
        "gpu": "needs a GPU" if device == "cpu" else None,
        "sanitizer": None if shutil.which("compute-sanitizer") else "compute-sanitizer is not on PATH",
        "data": None if "OSTRACK_FAST_DATA" in os.environ else "OSTRACK_FAST_DATA names no folder with sequences/",
    }
    processes = max(1, min(12, (os.cpu_count() or 1) - 2))
    words = {
        "device": device,
        "out": shlex.quote(str(out)),
        "root": shlex.quote(str(ROOT)),
        "python": shlex.quote(sys.executable),
        "command": shlex.join(COMMAND),
        "pytest": shlex.join(PYTEST),
        "parallel": f"-n {processes}" if importlib.util.find_spec("xdist") else "",
        "data": os.environ.get("OSTRACK_FAST_DATA", ""),
        "architecture": os.environ.get("OSTRACK_FAST_CUDA_ARCHITECTURES", "90-real"),  # a Hopper
    }
    found = []
    for line in (ROOT / "bench" / "gpu_plan.txt").read_text(encoding="utf-8").splitlines():
        columns = [part.strip() for part in line.split("|", 4)]
        if line.startswith("#") or not line:
            continue
        if len(columns) == 3:
            words[columns[0]] = columns[1 if device == "cpu" else 2].format(**words)
            continue
        call, seconds, name, needs, text = columns
        skip = next((missing[need] for need in needs.split() if missing[need]), None)
        step = Step(name, int(seconds), tuple(shlex.split(text.format(**words))), int(call), skip)
        if step.command[0] in ("bench", "profile"):
            kept = ("--device", device, "--json", str(out / f"{step.stem}.json"))
            step = replace(step, command=(*COMMAND, *step.command, *kept))
        found.append(step)
    return found


def link_in_place() -> int:
    """Make the checkout importable as it is, with the compiled library if it lies in ostrack_fast/."""
    for name in ("kernels", "bench"):
        if not (PACKAGE / name).exists():
            (PACKAGE / name).symlink_to(Path("..") / name)
    code = "import ostrack_fast._C as c; print('compiled library:', c.build_info())"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    print(done.stdout.strip() or f"no compiled library, Triton alone: {(done.stderr.splitlines() or [''])[-1]}")
    return 0


def run(step: Step, log: Path, limit: float) -> tuple[str, str]:
    """Status, and what it found. A step that reaches its limit is ended with all it started: "cut off"."""
    with log.open("w", encoding="utf-8") as output:
        print("$", *step.command, file=output, flush=True)
        child = subprocess.Popen(
            step.command,
            cwd=log.parent,  # in the checkout, Python would import its sources instead of what is installed
            env=step.environment(log.parent),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = child.wait(max(limit, 0.1))
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    return _verdict(step, code, [line.strip() for line in log.read_text("utf-8", "replace").splitlines()[1:]])


def _verdict(step: Step, code: int | None, lines: list[str]) -> tuple[str, str]:
    last = next((line.strip("= │") for line in reversed(lines) if any(map(str.isalnum, line))), "")
    if code is None:
        counts = {word: sum(f" {word}" in line for line in lines) for word in ("PASSED", "FAILED", "ERROR")}
        seen = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
        return "cut off", f"not done at its limit; {seen or last}"
    if code:
        # The line that says most: the last of pytest's, a sanitizer's or a traceback's.
        telling = ("FAILED ", "ERROR ", "========= ERROR SUMMARY", "Error")
        wrong = [line.strip("= ") for line in lines if line.startswith(telling) or "Error: " in line]
        return "failed", f"exit code {code}: " + "; ".join(dict.fromkeys((last, *wrong[-1:])))
    if "pytest" in step.command and " passed" not in last:
        return "failed", f"no test ran: {last}"
    if "bench" in step.command and "--json" in step.command:
        return "ok", _times(json.loads(Path(step.command[-1]).read_text(encoding="utf-8"))["results"])
    return "ok", last


def _times(results: list[dict[str, Any]]) -> str:
    """A benchmark's results in a line: microseconds of each implementation by shape, or errors if none was timed."""
    lines = []
    for result in results:
        numbers = {
            name: f"{1e6 * one['seconds']:.0f}" if "seconds" in one else " ".join(f"{e:.1g}" for e in one["errors"])
            for name, one in result["implementations"].items()
        }
        found = ", ".join(f"{name} {number}" for name, number in numbers.items()) + " us" * ("roofline" in result)
        lines.append(f"{result['shape']}, batch {result['batch']}, {result['dtype']}: {found}")
    return "; ".join(lines)


def keep(out: Path, found: dict[str, Any]) -> None:
    """Everything so far in one document, written atomically; and the compiled library."""
    numbers = [path for path in sorted(out.glob("*.json")) if path.name != "gpu_check.json"]
    results = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in numbers}
    partial = out / "gpu_check.partial"
    partial.write_text(json.dumps({"steps": found, "results": results}, indent=1) + "\n", encoding="utf-8")
    partial.replace(out / "gpu_check.json")
    for library in PACKAGE.glob("_C*.so"):
        shutil.copy(library, out / library.name)


def table(plan: list[Step], found: dict[str, dict[str, Any]]) -> str:
    """A line for every step."""
    width = max(len(step.name) for step in plan)
    lines = [f"{'step':{width}}  {'status':8} seconds  found"]
    for step in plan:
        one = found.get(step.name, {"status": "to do", "seconds": 0.0, "found": ""})
        lines.append(f"{step.name:{width}}  {one['status']:8} {one['seconds']:7.1f}  {one['found'][:900]}")
    return "\n".join(lines)


def run_plan(plan: list[Step], out: Path, found: dict[str, dict[str, Any]], slack: float = 1.0) -> None:
    """Run every step until the limits of all steps up to it are over, each `slack` times as long as it says."""
    begin, deadline = time.monotonic(), 0.0
    for number, step in enumerate(plan):
        if step.skip is not None:
            found[step.name] = {"status": "skipped", "seconds": 0.0, "found": step.skip}
            continue
        start = time.monotonic()
        deadline += slack * step.seconds
        print(f"[{start - begin:5.0f} s] {step.name} ...", flush=True)
        log = out / f"{number:02}_{step.stem}.txt"
        status, text = run(step, log, deadline - (start - begin))
        print(f"        {status}: {text[:200]}", flush=True)
        seconds = time.monotonic() - start
        found[step.name] = {"status": status, "seconds": seconds, "found": text, "log": log.name}
        keep(out, found)


def chosen_steps(every: list[Step], call: int, only: str | None) -> list[Step]:
    """The steps of a call, or those named. Raises SystemExit for a name that is none of them."""
    if only is None:
        return [step for step in every if step.call == call]
    names = [name.strip() for name in only.split(";")]
    unknown = set(names) - {step.name for step in every}
    if unknown:
        raise SystemExit(f"no step {', '.join(sorted(unknown))}: choose from {', '.join(step.name for step in every)}")
    return [step for step in every if step.name in names]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--call", type=int, choices=(1, 2), default=1, help="the first or the second")
    parser.add_argument("--only", help="steps by name, with semicolons between them, whichever call they belong to")
    parser.add_argument("--in-place", action="store_true", help="make this checkout importable as it is, and no more")
    options = parser.parse_args()
    if options.in_place:
        return link_in_place()

    # CUDA's tools are here if they are not on PATH.
    os.environ["PATH"] = os.pathsep.join((os.environ.get("PATH", ""), "/usr/local/cuda/bin"))
    out = Path(os.environ.get("OUT") or WORK).resolve()
    plan = chosen_steps(steps(options.device, out), options.call, options.only)
    out.mkdir(parents=True, exist_ok=True)
    # The next step finds what this one compiled.
    for name, variable in (("triton", "TRITON_CACHE_DIR"), ("inductor", "TORCHINDUCTOR_CACHE_DIR")):
        os.environ.setdefault(variable, str(WORK / name))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the table is printed all the same
    found: dict[str, dict[str, Any]] = {}
    try:
        # A rehearsal says nothing of speed, and a busy CPU may take any time.
        run_plan(plan, out, found, 1.0 if options.device == "cuda" else 60.0)
    finally:
        print(table(plan, found))
    failed = sum(one["status"] in ("failed", "cut off") for one in found.values())
    print(f"{failed} failed or cut off; everything is in {out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
