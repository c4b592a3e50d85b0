"""What the site adds to the repository's pages: the tree of pages, tables of commands, and docstrings as text."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import api
from docutils import nodes
from docutils.parsers.rst import Directive

from infra import cli
from infra.base.fields import FieldRow, field_rows
from infra.base.recipe_files import RECIPE_PACKAGES

REPOSITORY = Path(__file__).parents[2]
LISTS = ("docs/README", "docs/reference/commands", "docs/decisions/README")
"""Pages whose lists of links are the tree of pages."""
LINK = re.compile(r"^- \[([^\]]*)\]\(([^)#]+)\.md\)", re.MULTILINE)


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("oacir-command", CommandDirective)
    app.add_directive("oacir-recipes", RecipesDirective)
    app.connect("source-read", add_tree)
    app.connect("builder-inited", write_api)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def write_api(_app: Any) -> None:
    """The pages of the Python reference, made anew."""
    api.write(REPOSITORY, REPOSITORY / "docs" / "reference" / "api")


def add_tree(_app: Any, docname: str, content: list[str]) -> None:
    """Give a page that lists others the tree which its lists draw, so that there is one list for all readers."""
    if docname == "docs/reference/python":
        content[0] += toctree("", ["api/*"], ":glob:\n")
    if docname in LISTS:
        for section in ("\n" + content[0]).split("\n## "):
            caption, _, text = section.partition("\n")
            if pages := LINK.findall(text):
                content[0] += toctree(caption, [f"{label} <{page}>" for label, page in pages])


def toctree(caption: str, pages: list[str], options: str = "") -> str:
    """Pages below a page, for the navigation alone."""
    said = f":caption: {caption}\n" if caption else ""
    return f"\n```{{toctree}}\n:hidden:\n{options}{said}\n" + "\n".join(pages) + "\n```\n"


class CommandDirective(Directive):
    """A command with the fields of its recipe, as `oacir COMMAND --help` lists them."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """A section with a line and a table."""
        verb = cli.VERBS[self.arguments[0]]
        recipe, _ = verb.load()
        section = nodes.section(ids=[nodes.make_id(f"oacir {self.arguments[0]}")])
        section += nodes.title("", f"oacir {self.arguments[0]}")
        section += nodes.paragraph("", verb.summary)
        rows = field_rows(recipe)
        if rows:
            section += table(("field", "holds (default)", "what it is"), map(said_of, rows), (30, 20, 50))
        return [section]


class RecipesDirective(Directive):
    """The shipped recipes, each with the comment that it begins with."""

    def run(self) -> list[nodes.Node]:
        """A table for each package."""
        made: list[nodes.Node] = []
        for package in RECIPE_PACKAGES:
            made.append(nodes.rubric("", package))
            files = sorted((REPOSITORY / package / "recipes").glob("*.yaml"))
            made.append(
                table(("recipe", "what it is"), [(file.name, comment(file)) for file in files], (25, 75))
            )
        return made


def comment(recipe: Path) -> str:
    """The lines of a recipe's file before its first key."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), recipe.read_text().splitlines())
    return " ".join(line.lstrip("# ") for line in lines).rstrip(":")


def said_of(field: FieldRow) -> tuple[str, str, str]:
    """A field's row: its key, what it holds with the default, what it is."""
    default = "required" if field.default == "required" else f"({field.default})"
    under = "".join(f" With {choice} {kind}." for choice, kind in field.only)
    return field.key, f"{field.type} {default}", (field.help + under).strip()


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], widths: Sequence[int]) -> nodes.table:
    """Rows as a table, the first column as code."""
    made, group = nodes.table(), nodes.tgroup(cols=len(heads))
    made += group
    group += [nodes.colspec(colwidth=width) for width in widths]
    head, body = nodes.thead(), nodes.tbody()
    group += [head, body]
    head += row(nodes.paragraph("", word) for word in heads)
    for first, *rest in rows:
        body += row([nodes.paragraph("", "", nodes.literal("", first)), *map(words, rest)])
    return made


def words(text: str) -> nodes.paragraph:
    """Text with `code`."""
    made = nodes.paragraph()
    for index, part in enumerate(text.split("`")):
        made += nodes.literal("", part) if index % 2 else nodes.Text(part)
    return made


def row(cells: Iterable[nodes.Node]) -> nodes.row:
    """A row of cells."""
    made = nodes.row()
    made += [nodes.entry("", cell) for cell in cells]
    return made
