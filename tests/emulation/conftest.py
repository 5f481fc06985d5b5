"""The emulated kernels: built once per change of their source, into pytest's cache."""

from __future__ import annotations

from pathlib import Path

import emulator
import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "sanitize: runs the emulated kernels under AddressSanitizer or ThreadSanitizer")


@pytest.fixture(scope="session")
def build_folder(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if reason := emulator.missing():
        pytest.skip(reason)
    if not pytestconfig.pluginmanager.hasplugin("cacheprovider"):
        return tmp_path_factory.mktemp("emulation")
    return Path(pytestconfig.cache.mkdir("emulation"))


@pytest.fixture(scope="session")
def built(build_folder: Path) -> emulator.Emulator:
    return emulator.Emulator(emulator.build(build_folder))


@pytest.fixture
def kernels(built: emulator.Emulator) -> emulator.Emulator:
    """The kernels as compiled for compute capability 9.0 and later, in the plain schedule."""
    built.configure()
    return built


@pytest.fixture(scope="session")
def turing(build_folder: Path) -> emulator.Emulator:
    """Attention as compiled for compute capability 7.5: no cp.async, mma instructions of K 8."""
    return emulator.Emulator(emulator.build(build_folder, arch=750, kernels=("attention",)))
