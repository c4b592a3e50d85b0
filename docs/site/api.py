"""The Python reference as Markdown, from the sources' trees and docstrings. Nothing is imported: that takes seconds."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("infra", "pipelines", "training", "tuning")
SECTIONS = ("Args", "Returns", "Raises", "Yields", "Attributes")
WIDTH = 100
"""Characters of a signature before each of its parameters gets a line."""
MARKUP = re.compile(r"(`[^`\n]+`)|([*_<\[\]|\\])")
Function = ast.FunctionDef | ast.AsyncFunctionDef


def write(repository: Path, folder: Path) -> list[str]:
    """A page for each package with public modules, into `folder`; pages of packages that are gone are deleted.

    Returns:
        The pages' names, in order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    texts = {f"{name}.md": text for name, text in pages(repository) if text}
    for old in set(folder.glob("*.md")) - {folder / name for name in texts}:
        old.unlink()
    for name, text in texts.items():
        if not (folder / name).exists() or (folder / name).read_text() != text:
            (folder / name).write_text(text)
    return list(texts)


def pages(repository: Path) -> Iterator[tuple[str, str]]:
    """Dotted name and text of every package; the text is empty where there is nothing public."""
    for top in PACKAGES:
        for init in sorted((repository / top).rglob("__init__.py")):
            package = ".".join(init.parent.relative_to(repository).parts)
            files = [init, *sorted(f for f in init.parent.glob("*.py") if not f.name.startswith("_"))]
            told = [text for f in files[1:] if (text := module(f, f"{package}.{f.stem}"))]
            tree = ast.parse(init.read_text())
            yield package, "\n\n".join([f"# {package}", *docs(tree), *told]) + "\n" if told else ""


def module(path: Path, name: str) -> str:
    """A module's section: its docstring and everything public in it."""
    tree = ast.parse(path.read_text())
    parts = [f"## {name}", *docs(tree)]
    parts += fields(tree.body)
    for node in tree.body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            parts += [f"### {plain(node.name)}", *described(node)]
    return "\n\n".join(parts)


def described(node: Function | ast.ClassDef) -> list[str]:
    """What is said of a class or function, below its heading."""
    if not isinstance(node, ast.ClassDef):
        return [code(signature(node)), *docs(node)]
    bases = f"({', '.join(ast.unparse(base) for base in node.bases)})" if node.bases else ""
    parts = [code(f"class {node.name}{bases}"), *docs(node), *fields(node.body)]
    for inner in node.body:
        if isinstance(inner, Function) and (not inner.name.startswith("_") or inner.name == "__init__"):
            said = docs(inner)
            if said or inner.name == "__init__":
                parts += [code(signature(inner)), *said]
    return parts


def signature(node: Function) -> str:
    """As it is written, without its body."""
    start = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    decorated = "".join(f"@{ast.unparse(d)}\n" for d in node.decorator_list if isinstance(d, ast.Name))
    words = ast.unparse(node.args)
    line = f"{decorated}{start} {node.name}({words}){result}"
    if len(line) <= WIDTH or not words:
        return line
    inner = ",\n".join(f"    {part}" for part in parameters(node.args))
    return f"{decorated}{start} {node.name}(\n{inner},\n){result}"


def parameters(given: ast.arguments) -> list[str]:
    """Parameters one by one, with `*` and `/` where they stand."""
    parts = []
    positional = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(positional) - len(given.defaults)) + list(given.defaults)
    for index, (one, default) in enumerate(zip(positional, defaults, strict=True)):
        parts.append(one_parameter(one, default))
        if given.posonlyargs and index == len(given.posonlyargs) - 1:
            parts.append("/")
    if given.vararg:
        parts.append("*" + ast.unparse(given.vararg))
    elif given.kwonlyargs:
        parts.append("*")
    parts += [one_parameter(one, d) for one, d in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    return parts + (["**" + ast.unparse(given.kwarg)] if given.kwarg else [])


def one_parameter(one: ast.arg, default: ast.expr | None) -> str:
    """Name, type and default."""
    equals = " = " if one.annotation else "="
    return ast.unparse(one) + (equals + ast.unparse(default) if default is not None else "")


def fields(body: list[ast.stmt]) -> list[str]:
    """Public names that are given a value or type, each with the docstring below it, as one list."""
    rows = []
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign):
            target = node.target
        elif isinstance(node, ast.Assign) and len(node.targets) == 1:
            target = node.targets[0]
        else:
            continue
        said = (
            after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
        )
        if not isinstance(target, ast.Name) or target.id.startswith("_") or not isinstance(said, str):
            continue
        if isinstance(node, ast.Assign) and not said:
            continue
        value = ast.unparse(node.value) if node.value else ""
        kind = f": {ast.unparse(node.annotation)}" if isinstance(node, ast.AnnAssign) else ""
        default = f" = {value}" if value and len(value) <= 60 and "\n" not in value else ""
        rows.append(
            f"- {tick(target.id + kind + default)}" + (f": {plain(' '.join(said.split()))}" if said else "")
        )
    return ["\n".join(rows)] if rows else []


def docs(node: ast.AsyncFunctionDef | ast.FunctionDef | ast.ClassDef | ast.Module) -> list[str]:
    """A docstring as blocks of Markdown; its sections (Args, Returns, …) as lists."""
    text = ast.get_docstring(node)
    if not text:
        return []
    blocks: list[str] = []
    for part in re.split(rf"\n(?=(?:{'|'.join(SECTIONS)}):\n)", text):
        head, _, rest = part.partition("\n")
        if head.rstrip(":") in SECTIONS and rest:
            blocks += [f"**{head.rstrip(':')}**", items(rest, head)]
        else:
            blocks.append(plain(part.strip()))
    return blocks


def items(text: str, head: str) -> str:
    """The entries of a section: one for each line that is indented least."""
    lines = [line for line in text.splitlines() if line.strip()]
    least = min(len(line) - len(line.lstrip()) for line in lines)
    entries: list[str] = []
    for line in lines:
        if len(line) - len(line.lstrip()) > least or (entries and head in ("Returns:", "Yields:")):
            entries[-1] += " " + line.strip()
        else:
            entries.append(line.strip())
    named = [re.match(r"([\w*, .]+): (.*)", entry) for entry in entries]
    if head in ("Returns:", "Yields:"):
        return plain(entries[0])
    return "\n".join(
        f"- {tick(match[1])}: {plain(match[2])}" if match else f"- {plain(entry)}"
        for match, entry in zip(named, entries, strict=True)
    )


def plain(text: str) -> str:
    """A docstring's words as Markdown: `code` stays, nothing else in them is markup."""
    escaped = MARKUP.sub(lambda m: m[1] or f"\\{m[2]}", text)
    return re.sub(r"^(\s*)(#|\d+\.|>|=|\+)", r"\1\\\2", escaped, flags=re.MULTILINE)


def tick(text: str) -> str:
    """Code within a line."""
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def code(text: str) -> str:
    """Code as a block."""
    return f"```python\n{text}\n```"
