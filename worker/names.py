"""What is an image's output called, and do two inputs want the same name?

The tree is mirrored: an input's key is its output's key, with another suffix where the format changes. Two inputs
can then only collide if they differ in nothing but their suffix (a.jpg and a.png both become a.png). A folder is
listed in byte order, where all names that start with "a." stand together: whoever might still collide is a short
stack of nested stems ("img" in img.jpg, then "img.0001" in img.0001.jpg), however long the listing is.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from worker.errors import UnsafeKey
from worker.formats import IMAGE_SUFFIXES, SUFFIX, output_format
from worker.jobs import Options
from worker.storage import check_key


@dataclass
class Namer:
    """Gives names to a listing in its order; its `stack` lets another process go on where it stopped."""

    options: Options
    stack: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    """(stem, {output: its input}), each stem a prefix of the next."""

    def name(self, key: str) -> tuple[str, tuple[str, str] | None]:
        """The output key of an image, and a (code, message) if it cannot be written there."""
        output = output_key(key, self.options.format)
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
                f"2 inputs map to {output} ({first}, {key}); rename one of them, or leave it out with --exclude",
            )
        return output, None


def output_key(key: str, requested: str) -> str:
    """Where an input's output goes: the same key, with another suffix if it is written in another format."""
    stem, _, suffix = key.rpartition(".")
    source = IMAGE_SUFFIXES["." + suffix.lower()]
    target = output_format(source, requested)
    return key if target == source else stem + SUFFIX[target]


def is_image(key: str) -> bool:
    """Whether the name ends as an image's does; what it holds is seen when it is read."""
    name = key.rpartition("/")[2]
    stem, dot, suffix = name.rpartition(".")
    return bool(stem and dot) and "." + suffix.lower() in IMAGE_SUFFIXES
