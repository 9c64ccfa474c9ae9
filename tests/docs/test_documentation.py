"""What the documentation says is run, and what it lists is compared with the code."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import pytest

from ernie_accel import env, errors

ROOT = Path(__file__).parents[2]
POET = ROOT / "examples/poet/model"
PAGES = sorted(path for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
NEEDS = {"sharding.md": "paddle"}
"""Pages whose snippets need what only ``scripts/test --all`` installs."""

needs_poet = pytest.mark.skipif(
    not (POET / "model.safetensors").exists(), reason="examples/poet/model has no weights"
)


def blocks(page: Path, language: str) -> list[str]:
    return [code for found, code in BLOCK.findall(page.read_text(encoding="utf-8")) if found == language]


def pages_with(language: str) -> list[Path]:
    return [page for page in PAGES if blocks(page, language)]


def run(command: list[str], program: str | None = None) -> str:
    environment = {**os.environ, "PATH": sysconfig.get_path("scripts") + os.pathsep + os.environ["PATH"]}
    result = subprocess.run(
        command, input=program or "", cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


@needs_poet
@pytest.mark.parametrize("page", pages_with("python"), ids=lambda page: page.name)
def test_python_of_a_page_runs_from_top_to_bottom(page: Path) -> None:
    if page.name in NEEDS and find_spec(NEEDS[page.name]) is None:
        pytest.skip(f"{NEEDS[page.name]} is not installed; scripts/test --all has it")
    run([sys.executable, "-W", "error", "-"], "\n".join(blocks(page, "python")))


@needs_poet
@pytest.mark.parametrize("page", pages_with("console"), ids=lambda page: page.name)
def test_commands_of_a_page_run(page: Path) -> None:
    """Lines that begin with a dollar sign; the rest is their output."""
    for line in "\n".join(blocks(page, "console")).splitlines():
        if line.startswith("$ "):
            assert run(shlex.split(line[2:]))


@needs_poet
@pytest.mark.parametrize("example", sorted(ROOT.glob("examples/[0-9]*.py")), ids=lambda path: path.name)
def test_example_runs(example: Path) -> None:
    assert len(run([sys.executable, "-W", "error", str(example)])) > 100


NOTEBOOKS = {"quickstart": "docs/quickstart.md", "sizing": "docs/guides/sizing.md"}


@needs_poet
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_runs(name: str) -> None:
    program = """
import sys, nbclient, nbformat
notebook = nbformat.read(f"examples/{sys.argv[1]}.ipynb", as_version=4)
place = {"metadata": {"path": "examples"}}
nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=place).execute()
print(sum(cell.cell_type == "code" and bool(cell.outputs) for cell in notebook.cells))
"""
    assert int(run([sys.executable, "-", name], program)) >= 4


@pytest.mark.parametrize(("name", "page_name"), NOTEBOOKS.items())
def test_notebook_is_committed_without_output_and_says_what_the_page_says(name: str, page_name: str) -> None:
    notebook = json.loads((ROOT / f"examples/{name}.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    page = blocks(ROOT / page_name, "python")
    # The first cell only goes to the root of the clone.
    assert ["".join(cell["source"]).strip() for cell in cells[1:]] == [code.strip() for code in page]


def test_every_link_leads_somewhere() -> None:
    dead = [
        f"{page.relative_to(ROOT)}: {link}"
        for page in PAGES
        for link in LINK.findall(page.read_text(encoding="utf-8"))
        if not (page.parent / link).exists()
    ]
    assert dead == []


def test_error_tree_is_the_one_in_the_code() -> None:
    (shown,) = blocks(ROOT / "docs/reference/errors.md", "text")
    assert errors.__doc__ is not None
    code = [line[4:] for line in errors.__doc__.splitlines() if line.startswith("    ")]
    assert shown.splitlines() == code


def test_every_variable_is_documented() -> None:
    source = (ROOT / "ernie_accel/env.py").read_text(encoding="utf-8")
    page = (ROOT / "docs/reference/environment.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `(ERNIE_ACCEL_\w+)`", page, re.MULTILINE))
    assert set(re.findall(r'"(ERNIE_ACCEL_\w+)"', source)) <= documented
    assert all(f"`{level}`" in page for level in env.ISA_LEVELS)


def test_variables_are_read_in_one_place() -> None:
    """``env.py`` is the whole list."""
    reading = re.compile(r"os\.environ|os\.getenv")
    readers = [
        path for path in (ROOT / "ernie_accel").rglob("*.py") if reading.search(path.read_text("utf-8"))
    ]
    assert [path.name for path in readers] == ["env.py"]
