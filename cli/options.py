"""Which options do commands share? Those of a job, for submit and upscale, and those of output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")


def job_options(function: F) -> F:
    """The options that say what a job does; `read_options` turns them into worker.jobs.Options."""
    for option in reversed(_JOB):
        function = option(function)
    return function


_JOB: list[Callable[[F], F]] = [
    click.option("-s", "--scale", type=float, default=2, show_default=True, help="Factor, 1 to 16, whole or not."),
    click.option(
        "--format",
        "format_",
        type=click.Choice(["same", "jpeg", "png", "webp", "tiff", "bmp", "avif"]),
        default="same",
        show_default=True,
        help="Format of the outputs; GIF becomes PNG.",
    ),
    click.option("--quality", type=int, help="1 to 100 for JPEG, WebP and AVIF  [default: 95, 90 and 80]"),
    click.option(
        "--metadata",
        type=click.Choice(["keep", "strip", "copyright"]),
        default="keep",
        show_default=True,
        help="EXIF and XMP: all, none, or only artist and copyright.",
    ),
    click.option("--include", multiple=True, metavar="PATTERN", help="Only keys like '2019/*.png'; repeatable."),
    click.option("--exclude", multiple=True, metavar="PATTERN", help="No keys like this; repeatable."),
    click.option("--recursive/--no-recursive", default=True, show_default=True, help="Folders in folders too."),
    click.option(
        "--overwrite",
        type=click.Choice(["stale", "never", "always"]),
        default="stale",
        show_default=True,
        help="Outputs that are there: stale does those again whose source, settings or model have changed.",
    ),
    click.option(
        "--self-ensemble", is_flag=True, help="Average eight orientations: slightly better, 8 times the work."
    ),
    click.option("--reference", metavar="URI", help="True pictures under the same keys, to score against."),
    click.option(
        "--model",
        metavar="NAME",
        help="A version, 'shipped', or 'follow' (what is in production as each chunk begins)  [default: production]",
    ),
    click.option("--score/--no-score", default=True, show_default=True, help="Compute PSNR."),
]


def read_options(
    *,
    scale: float,
    format_: str,
    quality: int | None,
    metadata: str,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    recursive: bool,
    overwrite: str,
    self_ensemble: bool,
    reference: str | None,
    score: bool,
) -> Any:
    """worker.jobs.Options of the command's words."""
    from worker.jobs import Options

    return Options(
        scale=scale,
        format=format_,
        quality=quality,
        metadata=metadata,
        overwrite=overwrite,
        recursive=recursive,
        include=include,
        exclude=exclude,
        reference=reference,
        score=score,
        self_ensemble=self_ensemble,
    )
