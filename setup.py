"""Builds ostrack_fast._C (csrc/) with CMake and ninja; everything else about the package is in pyproject.toml."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pybind11
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def made_by_setuptools() -> set[Path]:
    """What lies beside the sources of a build, but for CMake's folder of an editable install."""
    return {*ROOT.glob("*.egg-info"), *(ROOT / "build").glob("[!c]*")}


def leave_no_litter() -> None:
    """Remove, when this process ends, what it has left in the source tree, where setuptools builds."""

    def clean() -> None:
        for path in made_by_setuptools() - before:
            shutil.rmtree(path, ignore_errors=True)
        with contextlib.suppress(OSError):  # there is none, or something in it
            (ROOT / "build").rmdir()

    before = made_by_setuptools()
    atexit.register(clean)


def find_program(name: str) -> str:
    """Path of a build program; the scripts folder of this Python counts even where its environment is not activated."""
    found = shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts"))
    if found is None:
        raise SystemExit(f"Building ostrack_fast needs '{name}', which is not on PATH: pip install {name}")
    return found


class BuildWithCMake(build_ext):
    """Runs CMake once for the one extension module and puts it where setuptools wants it."""

    def cmake_folder(self) -> Path:
        """Where objects lie. They are kept for the next build of an editable install, or where one asks for that."""
        name = f"cmake-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        if kept := os.environ.get("OSTRACK_FAST_BUILD_DIR"):
            return Path(kept).resolve() / name
        return (ROOT / "build" if self.editable_mode else Path(self.build_temp).resolve()) / name

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = self.cmake_folder()
        cmake = find_program("cmake")
        configure = [
            cmake,
            "-S",
            str(ROOT),
            "-B",
            str(build),
            "-G",
            "Ninja",
            f"-DCMAKE_MAKE_PROGRAM={find_program('ninja')}",
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DOSTF_VERSION={self.distribution.get_version()}",
            f"-DOSTF_CUDA={os.environ.get('OSTRACK_FAST_CUDA', 'AUTO')}",
            f"-DOSTF_CUDA_ARCHITECTURES={os.environ.get('OSTRACK_FAST_CUDA_ARCHITECTURES', '')}",
        ]
        subprocess.run(configure, check=True)
        subprocess.run([cmake, "--build", str(build), "--target", "_C"], check=True)
        if not target.exists():
            raise SystemExit(f"CMake finished without making {target}")


leave_no_litter()
setup(
    packages=[
        *find_packages(str(ROOT), include=["ostrack_fast", "ostrack_fast.*"]),
        "ostrack_fast.kernels",
        "ostrack_fast.bench",
    ],
    ext_modules=[Extension("ostrack_fast._C", sources=[])],
    cmdclass={"build_ext": BuildWithCMake},
)
