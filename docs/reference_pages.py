"""What of the reference is read out of the code? Commands, settings, codes and the library's class.

A page of docs/reference has a line `<!-- from the code: commands -->`; while the site is built, it becomes what the
code says now. Nothing heavy is imported: docstrings are read from the source.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, fields
from inspect import cleandoc, getdoc
from itertools import pairwise
from pathlib import Path

import click

import vdsr.errors
import worker.errors
from cli import main as program
from worker.metrics import catalogue
from worker.settings import Settings

ROOT = Path(__file__).parents[1]
MARK = re.compile(r"<!-- from the code: (\w+) -->")
WIDTH = 88  # of the help texts, as wide as a page


def fill(page: str) -> str:
    """The page with each mark replaced by what the code says."""
    return MARK.sub(lambda found: MAKERS[found[1]](), page)


def commands() -> str:
    """Every command's help, as `--help` prints it."""
    root = click.Context(program.root, info_name="vdsr")
    parts: list[str] = []
    for name in program.root.list_commands(root):
        command = program.root.get_command(root, name)
        assert command is not None
        parts += _help(command, click.Context(command, info_name=name, parent=root), "##")
    return "\n".join(parts)


def settings() -> str:
    """Every variable with its default and meaning, from `worker.settings.Settings`."""
    meanings = dict(_attribute_docs(ROOT / "worker" / "settings.py", "Settings"))
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for field in fields(Settings):
        value = "" if field.default is MISSING else _shown(field.default)
        rows.append(f"| `VDSR_{field.name.upper()}` | {value} | {_cell(meanings[field.name])} |")
    return "\n".join(rows)


def codes() -> str:
    """Every code of an image's outcome, from the classes that carry it."""
    found: dict[str, list[str]] = {}
    for module in (vdsr.errors, worker.errors):
        for kind in vars(module).values():
            if isinstance(kind, type) and "code" in vars(kind) and kind is not vdsr.errors.ImageError:
                found.setdefault(vars(kind)["code"], []).append((getdoc(kind) or "").splitlines()[0])
    rows = [f"| `{code}` | {_cell(' '.join(meanings))} |" for code, meanings in sorted(found.items())]
    return "\n".join(["| code | what is wrong |", "|---|---|", *rows])


def exits() -> str:
    """The table of exit codes in `cli.main`."""
    return "\n".join(line for line in (program.__doc__ or "").splitlines() if line.startswith("|"))


def errors() -> str:
    """Both trees of exceptions."""
    trees = [(getdoc(module) or "").split("\n\n")[1] for module in (vdsr.errors, worker.errors)]
    return "\n\n".join(f"```text\n{tree}\n```" for tree in trees)


def worker_metrics() -> str:
    """What a worker serves for Prometheus."""
    return _metrics(catalogue.WORKER)


def fleet_metrics() -> str:
    """What `vdsr metrics` serves."""
    return _metrics(catalogue.FLEET)


def library() -> str:
    """The public face of `Upscaler`: signatures and docstrings."""
    tree = ast.parse((ROOT / "vdsr" / "upscale.py").read_text())
    upscaler = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Upscaler")
    parts = [ast.get_docstring(upscaler) or ""]
    for node in upscaler.body:
        overloaded = isinstance(node, ast.FunctionDef) and "overload" in map(ast.unparse, node.decorator_list)
        if isinstance(node, ast.FunctionDef) and not overloaded and (node.name[0] != "_" or node.name == "__init__"):
            is_property = "property" in map(ast.unparse, node.decorator_list)
            title = "Upscaler" if node.name == "__init__" else f"Upscaler.{node.name}"
            words = "" if is_property else _arguments(node)
            given = f" -> {ast.unparse(node.returns)}" if node.returns and node.name != "__init__" else ""
            parts.append(f"## {title}\n\n```python\n{title}{words}{given}\n```\n")
            parts.append(f"```text\n{cleandoc(ast.get_docstring(node) or '')}\n```")
    return "\n\n".join(parts)


MAKERS: dict[str, Callable[[], str]] = {
    maker.__name__: maker
    for maker in (commands, settings, codes, exits, errors, worker_metrics, fleet_metrics, library)
}


def _metrics(metrics: Iterable[catalogue.Metric]) -> str:
    rows = ["| metric | type | unit | labels | meaning |", "|---|---|---|---|---|"]
    for metric in metrics:
        labels = "; ".join(f"`{name}`: {values}" for name, values in metric.labels.items())
        buckets = f" Up to {', '.join(f'{bound:g}' for bound in metric.buckets)}." if metric.buckets else ""
        cells = (f"`{metric.name}`", metric.kind, metric.unit, labels, metric.meaning + buckets)
        rows.append(f"| {' | '.join(map(_cell, cells))} |")
    return "\n".join(rows)


def _help(command: click.Command, context: click.Context, level: str) -> Iterator[str]:
    context.terminal_width = WIDTH
    text = "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
    yield f"{level} {context.command_path}\n\n```text\n{text}\n```\n"
    if isinstance(command, click.Group):
        for name, each in command.commands.items():
            yield from _help(each, click.Context(each, info_name=name, parent=context), level + "#")


def _arguments(node: ast.FunctionDef) -> str:
    """One argument a line: signatures are long."""
    given = node.args
    missing = [None] * (len(given.args) - len(given.defaults))
    plain = [_argument(arg, default) for arg, default in zip(given.args, [*missing, *given.defaults], strict=True)][1:]
    named = [_argument(arg, default) for arg, default in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    words = [*plain, *(["*", *named] if named else [])]
    return "(\n" + "".join(f"    {word},\n" for word in words) + ")"


def _argument(arg: ast.arg, default: ast.expr | None) -> str:
    kind = f": {ast.unparse(arg.annotation)}" if arg.annotation else ""
    return arg.arg + kind + (f" = {ast.unparse(default)}" if default else "")


def _attribute_docs(path: Path, name: str) -> Iterator[tuple[str, str]]:
    """(attribute, the string below it) of a class in a source file."""
    tree = ast.parse(path.read_text())
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    for attribute, text in pairwise(body):
        told = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
        if isinstance(attribute, ast.AnnAssign) and isinstance(attribute.target, ast.Name) and told:
            yield attribute.target.id, cleandoc(text.value.value)


def _shown(value: object) -> str:
    if value is None or value == "":
        return ""
    return f"{value:,}" if isinstance(value, int) else f"`{value}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
