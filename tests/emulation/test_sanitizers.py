"""The CUDA kernels under AddressSanitizer and ThreadSanitizer; and proof that both see what they should.

ThreadSanitizer knows the emulated program's orderings, not the schedule it happened to run in: it reports a race
between two CUDA threads even where the fibers took harmless turns.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import worker
from emulator import CSRC, HERE, KERNELS, Emulator, build

from tests.op_calls import save_calls

pytestmark = pytest.mark.sanitize

RACE, OVERRUN = 66, 67  # exit codes asked of the sanitizers
PRELOAD = {"address": "libasan.so", "thread": "libtsan.so"}
SEEN_BY = {
    "address": ("shared_out_of_bounds", "shared_array_overrun", "global_out_of_bounds", "misaligned_vector"),
    "thread": (
        "missing_barrier",
        "shuffle_for_a_fence",
        "blocks_write_one_word",
        "blocks_count_unsafely",
        "ticket_without_fence",
        "read_before_the_wait",
    ),
    "plain": (
        "different_barriers",
        "return_before_barrier",
        "shuffle_from_outside",
        "divergent_shuffle",
        "copy_without_wait",
        "unwritten_shared",
        "misaligned_ldmatrix",
    ),
}
FAULTS = [(flavour, name) for flavour, names in SEEN_BY.items() for name in names]


@pytest.fixture(scope="session")
def libraries(build_folder) -> dict[str, Path]:
    """Each sanitizer's library, with the faulty kernels in it."""
    for flavour, name in PRELOAD.items():
        if not runtime(flavour).is_absolute():
            pytest.skip(f"g++ has no {name}")
    return {flavour: build(build_folder, flavour, kernels=(*KERNELS, "faults")) for flavour in SEEN_BY}


@pytest.fixture(scope="session")
def turing_thread(build_folder, libraries) -> Path:
    return build(build_folder, "thread", 750, ("attention",))


def runtime(flavour: str) -> Path:
    """The sanitizer's shared library; a bare name where g++ has none."""
    command = ["g++", f"-print-file-name={PRELOAD[flavour]}"]
    return Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())


def run_cases(flavour: str, library: Path, cases: list[dict]) -> tuple[int, list[dict], str]:
    """The worker's exit code, its answers, and what the sanitizer said."""
    environment = dict(os.environ)
    if flavour in PRELOAD:
        environment["LD_PRELOAD"] = str(runtime(flavour))
        environment["ASAN_OPTIONS"] = f"detect_leaks=0:exitcode={OVERRUN}"  # the interpreter's own leaks are no matter
        environment["UBSAN_OPTIONS"] = f"print_stacktrace=1:exitcode={OVERRUN}"
        environment["TSAN_OPTIONS"] = f"halt_on_error=1:exitcode={RACE}"
    command = [sys.executable, str(HERE / "worker.py"), str(library), *map(json.dumps, cases)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def expected(library: Path, names: list[str]) -> list[dict]:
    kernels = Emulator(library)
    return [{"name": name, "digest": worker.digest(worker.run(kernels, name))} for name in names]


@pytest.mark.parametrize("flavour", PRELOAD)
def test_kernels_are_clean(libraries, flavour):
    """No report in any schedule, and the bits of the plain build."""
    schedules = [{"order": "in turn", "copies": "at issue"}, {"order": "random", "copies": "at wait", "seed": 1}]
    names = list(worker.CASES)
    bits = expected(libraries["plain"], names)
    for schedule in schedules:
        cases = [{"name": name, "configure": schedule} for name in names]
        code, answers, report = run_cases(flavour, libraries[flavour], cases)
        assert code == 0, report
        assert answers == bits, schedule


@pytest.mark.parametrize(
    ("flavour", "most"), [("address", 20_000), pytest.param("thread", 600, marks=pytest.mark.slow)]
)
def test_examples_are_clean(libraries, flavour, most, tmp_path):
    """Those of each op's own file, also of an op that is new; ThreadSanitizer is slow, and gets the small ones."""
    save_calls(tmp_path, cuda=True, most=most)
    name = f"examples:{tmp_path}"
    code, answers, report = run_cases(flavour, libraries[flavour], [{"name": name}])
    assert code == 0, report
    assert answers == expected(libraries["plain"], [name])


def test_turing_is_clean(turing_thread):
    code, answers, report = run_cases("thread", turing_thread, [{"name": "attention float16"}])
    assert code == 0, report
    assert "digest" in answers[0]


@pytest.mark.parametrize(("flavour", "name"), FAULTS, ids=lambda value: value)
def test_faults_are_seen(libraries, flavour, name):
    """By the tool that is there for it; and the sound twin of the same kernel passes."""
    code, answers, report = run_cases(flavour, libraries[flavour], [{"name": f"sound:{name}"}])
    assert code == 0 and "digest" in answers[0], (answers, report)
    code, answers, report = run_cases(flavour, libraries[flavour], [{"name": f"broken:{name}"}])
    if flavour == "plain":
        assert code == 0 and "error" in answers[0], answers
    else:
        assert code == {"address": OVERRUN, "thread": RACE}[flavour], (code, answers, report)


@pytest.mark.parametrize("op", [*KERNELS, "attention two groups"])
def test_overruns_of_the_kernels_are_seen(libraries, op):
    """Told of more than there is, each kernel's own accesses are caught."""
    code, _, report = run_cases("address", libraries["address"], [{"name": f"shorter:{op}"}])
    assert code == OVERRUN and "heap-buffer-overflow" in report and op.partition(" ")[0] in report, report


def test_bank_conflicts_are_counted(libraries):
    kernels = Emulator(libraries["plain"])
    for kind, count in (("sound", 0), ("broken", 28)):  # four matrices, each of eight rows in one bank
        kernels.counts()
        worker.run(kernels, f"{kind}:bank_conflict")
        assert kernels.counts()["conflicts"] == count


def orderings() -> list[tuple[str, int]]:
    """Every line of the kernels that orders memory, the wait for the kernel before included."""
    found = []
    for path in sorted((CSRC / "cuda").iterdir()):
        for number, text in enumerate(path.read_text().splitlines(), 1):
            # Votes that are only asked for their answer order nothing that needs it.
            if re.search(r"__(syncthreads|syncwarp|threadfence)\(|= __syncthreads_or\(|ptx::wait_for_inputs\(\)", text):
                found.append((path.name, number))
    return found


def test_every_barrier_is_needed_and_missed(libraries, turing_thread):
    """With any one barrier or fence of the kernels meeting but ordering nothing, ThreadSanitizer reports a race."""
    cases = {
        "attention_score.cuh": ["attention float16"],
        "attention_mma.cuh": ["attention float16", "attention two groups"],
        "attention_fp32.cuh": ["attention float32"],
        "eliminate.cu": ["eliminate"],
        "restore.cu": ["restore"],
        "crop.cu": ["crop"],
        "decode.cu": ["decode"],
        "update_box.cu": ["update_box"],
    }

    def is_seen(place: tuple[str, int]) -> bool:
        file, line = place
        # ThreadSanitizer remembers four accesses of a word: who reads first decides which race it can still see.
        runs = [(libraries["thread"], "at issue", "in turn"), (libraries["thread"], "at wait", "reversed")]
        if file == "attention_mma.cuh":  # some barriers are Turing's alone
            runs.append((turing_thread, "at wait", "in turn"))
        for library, copies, order in runs:
            configure = {"copies": copies, "order": order, "unordered": f"{file}:{line}"}
            named = [{"name": name, "configure": configure} for name in cases[file]]
            if run_cases("thread", library, named)[0] == RACE:
                return True
        return False

    places = orderings()
    assert len(places) > 15
    with ThreadPoolExecutor(2) as pool:
        unseen = [place for place, seen in zip(places, pool.map(is_seen, places), strict=True) if not seen]
    assert unseen == []
