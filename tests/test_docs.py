"""The documentation site builds without a warning, its notebooks run, and its examples name what exists."""

import ast
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def python_examples():
    for page in PAGES:
        for index, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)):
            yield pytest.param(block, id=f"{page.stem}-{index}")


def test_there_are_pages_and_notebooks():
    assert len(PAGES) >= 11 and len(NOTEBOOKS) == 2


@pytest.mark.parametrize("code", python_examples())
def test_an_example_is_python_and_imports_what_exists(code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ostrack_fast":
            if "adapters" in node.module and node.module != "ostrack_fast.adapters.tables":
                pytest.importorskip(node.module, reason=f"the tool of {node.module} is not installed")
            module = import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_have_the_options_that_pages_name(page):
    import typer

    from ostrack_fast.cli import app

    commands = typer.main.get_command(app).commands
    for line in re.findall(r"^ *ostrack-fast (.*?)(?: +#.*)?$", page.read_text(encoding="utf-8"), re.MULTILINE):
        name, *words = line.split()
        assert name in commands, line
        command = commands[name]
        if hasattr(command, "commands"):  # a group, such as paper
            assert words and words[0] in command.commands, line
            command = command.commands[words[0]]
        known = {option for each in command.params for option in (*each.opts, *each.secondary_opts)}
        unknown = {word for word in words if re.match(r"--?[a-z]", word)} - known
        assert not unknown, f"{line}: {unknown}"


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("material", reason="mkdocs-material is not installed")
    pytest.importorskip("mkdocstrings", reason="mkdocstrings is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for page in PAGES:
        assert (tmp_path / "site" / ("" if page.stem == "index" else page.stem) / "index.html").is_file()
    assert "candidate_elimination" in (tmp_path / "site" / "api" / "index.html").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path):
    client = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    client.NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in outputs)
