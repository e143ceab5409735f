"""A page of Markdown for every module of some packages, from its docstrings and signatures; nothing is imported."""

import json
import pathlib
import re
import textwrap
from collections.abc import Iterator

import griffe

FOLDER = "reference"


def write(root: pathlib.Path, packages: list[str], source: pathlib.Path) -> None:
    """Writes a page for each module of the packages in `root`, wherever in them it is, to `source`/FOLDER."""
    loader = griffe.GriffeLoader(
        search_paths=[root], allow_inspection=False, docstring_parser="google", docstring_options={"warnings": False}
    )
    tops = [loader.load(package) for package in packages]
    loader.resolve_aliases()
    folder = source / FOLDER
    folder.mkdir(exist_ok=True)
    for module in (module for top in tops for module in walk(top)):
        (folder / f"{module.path}.md").write_text(module_page(module), encoding="utf-8")
    index = f"# Reference\n\n{contents([top.path for top in tops], depth=2)}"
    (folder / "index.md").write_text(index, encoding="utf-8")


def walk(module: griffe.Module) -> Iterator[griffe.Module]:
    """A module and all below it."""
    yield module
    for below in submodules(module):
        yield from walk(below)


def submodules(module: griffe.Module) -> list[griffe.Module]:
    return sorted((member for member in module.modules.values() if not member.is_alias), key=lambda member: member.name)


def public_members(parent: griffe.Module | griffe.Class) -> list[griffe.Class | griffe.Function | griffe.Attribute]:
    """What a module or class defines itself, and does not call private, in the order of its file."""
    own = (member for member in parent.members.values() if not member.is_alias and not member.is_module)
    return sorted((member for member in own if not member.name.startswith("_")), key=lambda member: member.lineno or 0)


def module_page(module: griffe.Module) -> str:
    parts = [f"# {module.path}", f":::::{{py:module}} {module.path}\n:::::", docstring(module)]
    others = (member for member in module.members.values() if member.is_alias and member.name in (module.exports or ()))
    if links := ", ".join(f"{{py:obj}}`{member.name} <{member.target_path}>`" for member in others):
        parts.append(f"From elsewhere: {links}")
    parts += [description(member) for member in public_members(module)]
    if below := submodules(module):
        parts.append(contents([member.path for member in below]))
    return "\n\n".join(part for part in parts if part) + "\n"


def contents(pages: list[str], depth: int = 1) -> str:
    return f"```{{toctree}}\n:maxdepth: {depth}\n\n" + "\n".join(pages) + "\n```\n"


def description(member: griffe.Class | griffe.Function | griffe.Attribute) -> str:
    """A directive of Sphinx's Python domain for what a module or class defines, with all that is in it."""
    options, parts = [], [docstring(member)]
    if isinstance(member, griffe.Class):
        kind, signature = "class", member.signature() if "__init__" in member.members else member.name
        parts += [description(inner) for inner in public_members(member)]
        if member.bases:
            parts.insert(0, "Bases: " + ", ".join(f"`{base}`" for base in member.bases))
    elif isinstance(member, griffe.Function):
        kind = "method" if isinstance(member.parent, griffe.Class) else "function"
        options += [f":{name}:" for name in ("classmethod", "staticmethod") if name in member.labels]
        signature = member.signature()
    else:
        plain = "attribute" if isinstance(member.parent, griffe.Class) else "data"
        kind = "property" if "property" in member.labels else plain
        signature = member.name
        if member.annotation is not None:
            options.append(f":type: {json.dumps(one_line(str(member.annotation)))}")
        if member.value is not None and len(value := one_line(str(member.value))) <= 80:
            options.append(f":value: {json.dumps(value)}")
    body = "\n\n".join(part for part in parts if part)
    fence = ":" * (max([4, *map(len, re.findall(r"^ *(:{4,})", body, re.MULTILINE))]) + 1)
    return "\n".join([f"{fence}{{py:{kind}}} {one_line(signature)}", *options, "", body, fence])


def one_line(code: str) -> str:
    return re.sub(r"\s+", " ", code)


def docstring(member: griffe.Object) -> str:
    """The docstring, which is Markdown, with its sections (`Raises:` and the like) as lists."""
    if member.docstring is None:
        return ""
    return "\n\n".join(section_text(section) for section in member.docstring.parsed)


def section_text(section: griffe.DocstringSection) -> str:
    if isinstance(section, griffe.DocstringSectionText):
        return section.value
    if isinstance(section, griffe.DocstringSectionAdmonition):
        return f"{section.title}\n\n{section.value.contents}"
    title = section.title or section.kind.value.capitalize()
    return f"{title}:\n\n" + "\n".join(list_item(item) for item in section.value)


def list_item(item: griffe.DocstringElement) -> str:
    names = " ".join(f"`{part}`" for part in (getattr(item, "name", None), item.annotation) if part)
    text = f"{names}: {item.description}" if names else item.description
    return textwrap.indent(text, "  ").replace("  ", "- ", 1)
