"""`make docs` with the project's own settings, on a project of a few lines: what is on its pages, and what fails it."""

import html
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]

PYPROJECT = """
[project]
name = "small"
version = "1.2.3"
[tool.setuptools.packages.find]
include = ["wing*"]
"""
FILES = {
    "pyproject.toml": PYPROJECT,
    "README.md": "# Small\n\nSee [a page](docs/page.md#a-part), [code](wing/deep/leaf.py) and [why](CHANGELOG.md).\n",
    "CHANGELOG.md": "# Changelog\n",
    "docs/page.md": "# Page\n\n`docs/nowhere.md`\n\n## A part\n\n[Back](../README.md)\n",
    "wing/__init__.py": '"""The wing."""\n\nfrom wing.deep.leaf import grow\n\n__all__ = ["grow"]\n',
    "wing/deep/__init__.py": "",
    "wing/deep/leaf.py": '''
"""A leaf of f[B, T] and `*args`."""

import a_library_that_is_not_installed

SIZE: int = 3
"""How large."""


class Leaf:
    """What grows."""

    colour: str = "green"
    """Of its surface."""

    def __init__(self, size: int): ...

    @property
    def area(self) -> float:
        """Of one side."""

    def _hidden(self): ...


def grow(leaf: Leaf, *times: int, by: float = 0.5) -> Leaf:
    """Makes it **larger**.

    Raises:
      ValueError: it is
        too large.
    """
''',
}


def write_project(folder: pathlib.Path, files: dict[str, str]) -> None:
    """Files in a folder in which `make docs` finds its tools installed."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    shutil.copy(ROOT / "Makefile", folder)
    for settings in (ROOT / "docs").glob("*.py"):
        shutil.copy(settings, folder / "docs")
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/bin/sphinx-build").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m sphinx "$@"\n')
    (folder / ".venv/bin/sphinx-build").chmod(0o755)
    for made in (".venv/installed", ".venv/installed-for-docs"):
        (folder / made).touch()


def make_docs(folder: pathlib.Path) -> subprocess.CompletedProcess:
    return subprocess.run(["make", "docs", f"PYTHON={sys.executable}"], cwd=folder, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("project")
    write_project(folder, FILES)
    made = make_docs(folder)
    assert made.returncode == 0, made.stderr
    return folder / "build/docs"


def words(page: pathlib.Path) -> str:
    """What a page shows."""
    text = page.read_text()
    shown = re.sub(r"<[^>]*>", "", text[text.index("<article") : text.index("</article")])
    return re.sub(r"\s+", " ", html.unescape(shown))


def test_the_site_has_readme_docs_and_every_module_without_importing_one(site):
    assert "See a page, code and why." in words(site / "index.html")
    assert (site / "index.html").read_text().count('href="docs/page.html#a-part"') == 1
    assert (site / "docs/page.html").is_file() and (site / "CHANGELOG.html").is_file()
    assert "The wing. From elsewhere: grow" in words(site / "reference/wing.html")
    assert 'href="wing.deep.leaf.html#wing.deep.leaf.grow"' in (site / "reference/wing.html").read_text()
    leaf = words(site / "reference/wing.deep.leaf.html")
    for text in (
        "A leaf of f[B, T] and *args.",
        "SIZE: int = 3",
        "How large.",
        "Leaf(size: int)",
        "colour: str = 'green'",
        "property area: float",
        "grow(leaf: Leaf, *times: int, by: float = 0.5)",
        "Makes it larger.",
        "Raises: ValueError: it is too large.",
    ):
        assert text in leaf
    assert "_hidden" not in leaf


def test_the_site_needs_no_network(site):
    pages = [page.read_text() for page in site.rglob("*.html")]
    assert len(pages) >= 7
    loaded = [tag for page in pages for tag in re.findall(r"<(?:link|script|img|iframe|source)\b[^>]*>", page)]
    assert any("furo.css" in tag for tag in loaded)
    assert [tag for tag in loaded if re.search(r"""(?:href|src)=["']?(?:https?:)?//""", tag)] == []
    styles = [style.read_text() for style in site.rglob("*.css")]
    assert [style for style in styles if re.search(r"(?:url\(|@import)[\s'\"]*(?:https?:)?//", style)] == []


def test_links_that_lead_nowhere_fail_the_build_and_are_all_told(tmp_path):
    broken = {
        "README.md": "\n[1](docs/gone.md) [2](docs/page.md#another-part) [3](wing/leaf.py)\n",
        "docs/page.md": "\n[4](#top-of-all) ![5](curve.png)\n",
        "wing/deep/leaf.py": '\n\ndef fall():\n    """See [6](ground.md)."""\n',
    }
    write_project(tmp_path, FILES | {name: FILES[name] + text for name, text in broken.items()})
    made = make_docs(tmp_path)
    assert made.returncode == 2
    warnings = [line for line in made.stderr.splitlines() if "WARNING" in line]
    assert len(warnings) == 6
    for page, target in (
        ("README.md", "docs/gone.md"),
        ("README.md", "another-part"),
        ("README.md", "wing/leaf.py"),
        ("docs/page.md", "top-of-all"),
        ("docs/page.md", "curve.png"),
        ("reference/wing.deep.leaf.md", "ground.md"),
    ):
        assert [line for line in warnings if f"/{page}:" in line and target in line], (page, target)
