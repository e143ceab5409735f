"""The site of `make docs`: the *.md of this folder and of the one above as they are, and a page for every module.

Sphinx with MyST: maintained, fails for a link or an anchor that leads nowhere, and its pages need no network.
"""

import pathlib
import shutil
import sys
import tomllib

import sphinx.application

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs"))
import reference  # noqa: E402

_PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

project = _PYPROJECT["project"]["name"]
version = release = _PYPROJECT["project"]["version"]
extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence"]
root_doc = "README"
include_patterns = ["*.md", "docs/*.md", f"{reference.FOLDER}/*.md"]
myst_heading_anchors = 4
suppress_warnings = ["ref.python"]  # a name in a signature that several modules have: it just becomes no link
add_module_names = False
html_theme = "furo"
html_title = project
html_copy_source = False


def setup(app: sphinx.application.Sphinx) -> None:
    app.connect("builder-inited", write_reference)
    app.connect("source-read", add_contents)
    app.connect("build-finished", write_index)


def write_reference(app: sphinx.application.Sphinx) -> None:
    packages = [pattern.rstrip("*") for pattern in _PYPROJECT["tool"]["setuptools"]["packages"]["find"]["include"]]
    reference.write(ROOT, packages, pathlib.Path(app.srcdir))


def add_contents(app: sphinx.application.Sphinx, page: str, source: list[str]) -> None:
    """README is the first page of the site; the others are listed beside it."""
    if page == root_doc:
        source[0] += f"\n```{{toctree}}\n:hidden:\n:glob:\n\ndocs/*\n{reference.FOLDER}/index\n*\n```\n"


def write_index(app: sphinx.application.Sphinx, error: Exception | None) -> None:
    """What a web server shows for the folder itself."""
    if error is None:
        shutil.copyfile(app.outdir / f"{root_doc}.html", app.outdir / "index.html")
