"""What is an image's output called, and do two inputs want the same name?

The tree is mirrored: an input's key is its output's key, with another suffix where the format changes, or with a name
by --name-template. Two inputs can then only collide if they differ in nothing but their suffix (a.jpg and a.png both
become a.png): a template has {name} once and before {ext} and {format}, and of these no value ends another. A folder is
listed in byte order, where all names that start with "a." stand together: whoever might still collide is a short
stack of nested stems ("img" in img.jpg, then "img.0001" in img.0001.jpg), however long the listing is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from difflib import get_close_matches
from string import Formatter

from worker.errors import UnsafeKey, UsageError
from worker.formats import IMAGE_SUFFIXES, SUFFIX, output_format
from worker.jobs import Options
from worker.storage import check_key

FIELDS = ("name", "ext", "scale", "format")
"""Of a template: the input's name and its suffix, the factor, and the suffix of what is written."""
EXAMPLE = "{name}.{ext}.{format}"


@dataclass
class Namer:
    """Gives names to a listing in its order; its `stack` lets another process go on where it stopped."""

    options: Options
    stack: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    """(stem, {output: its input}), each stem a prefix of the next."""

    def name(self, key: str) -> tuple[str, tuple[str, str] | None]:
        """The output key of an image, and a (code, message) if it cannot be written there."""
        output = output_key(key, self.options)
        try:
            check_key(key)
        except UnsafeKey as exc:
            return output, (exc.code, str(exc))
        stem = key.rpartition(".")[0]
        while self.stack and not f"{stem}.".startswith(f"{self.stack[-1][0]}."):
            self.stack.pop()
        if not self.stack or self.stack[-1][0] != stem:
            self.stack.append((stem, {}))
        first = self.stack[-1][1].setdefault(output, key)
        if first != key:
            return output, (
                "name_collision",
                f"2 inputs map to {output} ({first}, {key}); use --name-template '{{name}}.{{ext}}.{{format}}', or "
                "leave one of them out with --exclude",
            )
        return output, None


def output_key(key: str, options: Options) -> str:
    """Where an input's output goes: the same key, with another suffix if it is written in another format."""
    stem, _, suffix = key.rpartition(".")
    source = IMAGE_SUFFIXES["." + suffix.lower()]
    target = output_format(source, options.format)
    written = suffix if target == source else SUFFIX[target].removeprefix(".")
    if not options.name_template:
        return f"{stem}.{written}"
    folder, slash, name = stem.rpartition("/")
    made = options.name_template.format(name=name, ext=suffix, scale=f"{options.scale:g}", format=written)
    return f"{folder}{slash}{made}"


def check_template(template: str, *, sized: bool = False) -> None:
    """Whether outputs may be named by it.

    Args:
        sized: each image has a factor of its own.

    Raises:
        UsageError: it would hide or misplace outputs, give them a wrong suffix, or let two inputs meet unnoticed.
    """
    try:
        pieces = [(literal, name, spec, how) for literal, name, spec, how in Formatter().parse(template)]
    except ValueError as exc:
        raise UsageError(f"--name-template {template!r} does not parse: {exc}; write {EXAMPLE!r}") from exc
    fields = [name for _, name, _, _ in pieces if name is not None]
    if unknown := [name for name in fields if name not in FIELDS]:
        near = get_close_matches(unknown[0], FIELDS, n=1)
        hint = f"did you mean {{{near[0]}}}?" if near else f"there are {', '.join(f'{{{name}}}' for name in FIELDS)}"
        raise UsageError(f"--name-template has {{{unknown[0]}}}; {hint}")
    if sized and "scale" in fields:
        raise UsageError(
            f"--name-template {template!r} has {{scale}}, and with --width, --height or --max-mp each image has its "
            "own; leave it out"
        )
    if any(spec or how for _, _, spec, how in pieces):
        raise UsageError(f"--name-template {template!r} has a ':' or '!' in a field; write {EXAMPLE!r}")
    before = fields[: fields.index("name")] if "name" in fields else fields
    if fields.count("name") != 1 or {"ext", "format"} & set(before):
        raise UsageError(f"--name-template {template!r} must have {{name}} once, before {{ext}} and {{format}}")
    if not template.endswith(".{format}"):
        raise UsageError(f"--name-template {template!r} must end in .{{format}}, as programs go by the suffix")
    literal = "".join(text for text, _, _, _ in pieces)
    if set(literal) & set("/\\\0") or template.startswith("."):
        raise UsageError(f"--name-template {template!r} must be a plain file name that is not hidden")


def is_image(key: str) -> bool:
    """Whether the name ends as an image's does; what it holds is seen when it is read."""
    name = key.rpartition("/")[2]
    stem, dot, suffix = name.rpartition(".")
    return bool(stem and dot) and "." + suffix.lower() in IMAGE_SUFFIXES
