"""Which options do commands share? Those of a job, for submit and upscale, and those of output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from cli.completing import versions

F = TypeVar("F", bound=Callable[..., Any])


class Choice(click.Choice[str]):
    """As click's, with a suggestion for a misspelt word."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The word itself."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as exc:
            from difflib import get_close_matches

            near = get_close_matches(str(value).lower(), list(self.choices), n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise click.BadParameter(exc.message + hint, ctx, param) from exc


events = click.option(
    "--events", is_flag=True, help="Print progress and the result as JSON lines, one a second at most."
)
dry_run = click.option(
    "-n", "--dry-run", is_flag=True, help="Say what would be done, skipped and refused, and what it takes; do nothing."
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")


def job_options(function: F) -> F:
    """The options that say what a job does; `read_options` turns them into worker.jobs.Options."""
    for option in reversed(_JOB):
        function = option(function)
    return function


_JOB: list[Callable[[F], F]] = [
    click.option("-s", "--scale", type=float, help="Factor, 1 to 16, whole or not.  [default: 2]"),
    click.option("--width", type=int, metavar="PX", help="Instead of a factor: outputs so wide."),
    click.option("--height", type=int, metavar="PX", help="Outputs so high; with --width, as large as fits into both."),
    click.option(
        "--max-mp",
        type=float,
        metavar="MP",
        help="Megapixels of an output at most: a smaller factor where it would have more.",
    ),
    click.option(
        "--format",
        "format_",
        type=Choice(["same", "jpeg", "png", "webp", "tiff", "bmp", "avif"]),
        default="same",
        show_default=True,
        help="Format of the outputs; with 'same', GIF and HEIC become PNG.",
    ),
    click.option("--quality", type=int, help="1 to 100 for JPEG, WebP and AVIF  [default: 95, 90 and 80]"),
    click.option(
        "--metadata",
        type=Choice(["keep", "strip", "copyright"]),
        default="keep",
        show_default=True,
        help="EXIF and XMP: all, none, or only artist and copyright.",
    ),
    click.option(
        "--max-failures",
        metavar="N|N%",
        default="",
        help="End the job as failed once more images than this have failed: 20, or 5% of all.",
    ),
    click.option(
        "--name-template",
        metavar="TEMPLATE",
        default="",
        help="Of the outputs' names, of {name}, {ext}, {scale} and {format}: '{name}-x{scale}.{format}'.",
    ),
    click.option("--include", multiple=True, metavar="PATTERN", help="Only keys like '2019/*.png'; repeatable."),
    click.option("--exclude", multiple=True, metavar="PATTERN", help="No keys like this; repeatable."),
    click.option("--recursive/--no-recursive", default=True, show_default=True, help="Folders in folders too."),
    click.option(
        "--overwrite",
        type=Choice(["stale", "never", "always"]),
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
        shell_complete=versions,
        help="A version, 'shipped', or 'follow' (what is in production as each chunk begins)  [default: production]",
    ),
    click.option("--score/--no-score", default=True, show_default=True, help="Compute PSNR."),
]


def files_from(function: F) -> F:
    """The options that name files; `read_named` turns them into worker.filelist.Named."""
    for option in reversed(_NAMED):
        function = option(function)
    return function


_NAMED: list[Callable[[F], F]] = [
    click.option(
        "--files-from",
        metavar="FILE",
        help="Only the files of SOURCE that FILE names, one a line; '-' reads standard input.",
    ),
    click.option("-0", "--null", is_flag=True, help="Names in --files-from end with NUL, as by 'find -print0'."),
]


def read_named(source: str, files_from: str | None, *, null: bool, settings: Any) -> Any:
    """worker.filelist.Named of the command's words; None if no file is named."""
    import sys
    from pathlib import Path

    from worker.errors import UsageError
    from worker.filelist import read_names
    from worker.uris import resolve

    if files_from is None:
        if null:
            raise UsageError("-0 says how the names in --files-from end; give that, too")
        return None
    try:
        data = sys.stdin.buffer.read() if files_from == "-" else Path(files_from).read_bytes()
    except OSError as exc:
        raise UsageError(f"--files-from {files_from} cannot be read: {exc.strerror}; give a file, or '-'") from exc
    return read_names(data, resolve(source, settings).uri, null=null)


def read_options(
    *,
    scale: float | None,
    width: int | None,
    height: int | None,
    max_mp: float | None,
    format_: str,
    quality: int | None,
    metadata: str,
    max_failures: str,
    name_template: str,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    recursive: bool,
    overwrite: str,
    self_ensemble: bool,
    reference: str | None,
    score: bool,
    priority: str = "normal",
) -> Any:
    """worker.jobs.Options of the command's words."""
    from worker.errors import UsageError
    from worker.jobs import Options

    context = click.get_current_context(silent=True)
    if context and context.get_parameter_source("scale") is ParameterSource.DEFAULT_MAP and (width or height):
        scale = None  # a configuration file's word gives way to the command line's
    if scale is not None and (width is not None or height is not None):
        raise UsageError("--scale is a factor, and --width and --height are a size; give one or the other")
    return Options(
        scale=2.0 if scale is None else scale,
        width=width,
        height=height,
        max_megapixels=max_mp,
        format=format_,
        quality=quality,
        metadata=metadata,
        max_failures=max_failures,
        name_template=name_template,
        overwrite=overwrite,
        recursive=recursive,
        include=include,
        exclude=exclude,
        reference=reference,
        score=score,
        priority=priority,
        self_ensemble=self_ensemble,
    )
