"""How does a job go on that has ended too early, or that Redis has forgotten? From its record at the destination.

A chunk with results is done, one without is done again. Images that want another attempt, as they failed or were left
when the job was stopped, become chunks of their own behind the last one.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from itertools import islice

from worker.jobs import Image, Outcome
from worker.ledger import Unfinished, count
from worker.parts import Part, Parts, in_order

AGAIN_IMAGES = 10
"""Images in a chunk of another attempt: few, as they are spread over the collection and may be of any size."""


def again(parts: Parts, first: int, images: Iterable[Image], *, cursor: str, listed: bool) -> int:
    """Add chunks for images that a job already has; the number behind the last of them.

    Args:
        first: number of the first chunk.
        cursor: where planning of the job goes on, and whether it has `listed` all.
    """
    waiting = {image.key: image for image in images}
    number = first
    while waiting:
        chunk = tuple(islice(waiting.values(), AGAIN_IMAGES))
        # Somebody who was killed half-way may have left this part: what lies there counts.
        part = parts.add_manifest(number, Part(chunk, ignored=0, cursor=cursor, last=listed))
        for image in part.images:
            waiting.pop(image.key, None)
        number += 1
    return number


def unfinished(parts: Parts) -> Unfinished:
    """What is done of a job and what is left, with chunks for images that were left out of chunks with results.

    Raises:
        UsageError: a part is damaged.
    """
    done, chunks = parts.chunks("results"), parts.chunks("manifest")
    ended = set(done)
    counters: Counter[str] = Counter()  # of floats, too: PSNR
    missing: dict[str, Image] = {}
    cursor, listed = "", False

    def read(chunk: int) -> tuple[Part, list[Outcome] | None]:
        return parts.manifest(chunk), parts.results(chunk) if chunk in ended else None

    for _, (part, rows) in in_order(read, chunks):
        cursor, listed = part.cursor, part.last
        fresh = [image for image in part.images if image.again is None]
        counters.update({"images": len(fresh), "ignored": part.ignored})
        counters["bytes"] += sum(image.size_bytes for image in fresh)
        if rows is not None:
            counters.update(count(rows, {image.key: image.again for image in part.images if image.again}))
        attempted = None if rows is None else {row.key for row in rows}
        for image in part.images:
            if attempted is None or image.key in attempted:
                missing.pop(image.key, None)
            else:
                missing[image.key] = image if image.again else dataclasses.replace(image, again="")
    planned = again(parts, len(chunks), missing.values(), cursor=cursor, listed=listed)
    left = tuple(chunk for chunk in range(planned) if chunk not in ended)
    return Unfinished(planned, cursor, listed, done=tuple(done), left=left, counters=dict(counters))
