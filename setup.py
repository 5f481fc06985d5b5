"""Builds ostrack_fast._C (csrc/) with CMake and ninja; everything else about the package is in pyproject.toml."""

from __future__ import annotations

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


def find_program(name: str) -> str:
    """Path of a build program; the scripts folder of this Python counts even where its environment is not activated."""
    found = shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts"))
    if found is None:
        raise SystemExit(f"Building ostrack_fast needs '{name}', which is not on PATH: pip install {name}")
    return found


class BuildWithCMake(build_ext):
    """Runs CMake once for the one extension module and puts it where setuptools wants it."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        # Not setuptools' own folder, which is a new one for each editable install: nothing would be built just once.
        build = ROOT / "build" / f"cmake-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
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


setup(
    packages=[
        *find_packages(str(ROOT), include=["ostrack_fast", "ostrack_fast.*"]),
        "ostrack_fast.kernels",
        "ostrack_fast.bench",
    ],
    ext_modules=[Extension("ostrack_fast._C", sources=[])],
    cmdclass={"build_ext": BuildWithCMake},
)
