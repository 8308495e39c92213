"""`vdsr eval`: the paper's table for a folder of HR images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.completing import versions
from cli.options import Choice, as_json

if TYPE_CHECKING:
    from vdsr.evaluate import Comparison, Score
    from vdsr.upscale import Upscaler


@click.command(name="eval", epilog="Example: vdsr eval Set5 --scale 3 --self-ensemble")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-s", "--scale", "scales", type=float, multiple=True, default=(2.0, 3.0, 4.0), show_default=True)
@click.option("--weights", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A checkpoint's file.")
@click.option(
    "--model",
    metavar="NAME",
    shell_complete=versions,
    help="A version, an alias, or 'shipped'  [default: what is in use]",
)
@click.option("--precision", type=Choice(["auto", "fp32", "bf16"]), default="fp32", show_default=True)
@click.option("--self-ensemble", is_flag=True, help="Average eight orientations: 8 times the work.")
@click.option("--device", help="auto, cpu, cuda or cuda:N  [default: VDSR_DEVICE, or auto]")
@as_json
def command(
    folder: Path,
    scales: tuple[float, ...],
    weights: Path | None,
    model: str | None,
    precision: str,
    self_ensemble: bool,
    device: str | None,
    as_json: bool,
) -> int:
    """Shrink the HR images of FOLDER, restore them by bicubic and by VDSR, and compare: PSNR-Y and SSIM."""
    from cli.output import print_json, say
    from vdsr.data import image_paths
    from vdsr.evaluate import PROTOCOL
    from vdsr.upscale import Upscaler
    from worker.errors import NothingMatched, UsageError
    from worker.models import choose, find_weights
    from worker.settings import load_settings

    if low := [scale for scale in scales if not 1 < scale <= 16]:
        raise UsageError(f"scale is {low[0]:g}; it must be above 1 and at most 16")
    paths = image_paths(folder)
    if not paths:
        raise NothingMatched(f"no image found in {folder}; give a folder of HR images")
    settings = load_settings()
    if weights and model:
        raise UsageError("--weights and --model name two different things; give one")
    chosen = weights or find_weights(choose(model, settings)[0], settings)[0]
    upscaler = Upscaler(chosen, device=device or settings.device, precision=precision)
    upscaler.self_ensemble = self_ensemble
    protocol = {**PROTOCOL, "precision": precision, "self_ensemble": self_ensemble, "device": str(upscaler.device)}
    identity = upscaler.identity
    report: dict[str, Any] = {
        "protocol": protocol,
        "model": {"version": identity.version, "sha256": identity.sha256},
        "scales": {},
    }
    bad: set[Path] = set()
    for scale in scales:
        rows = dict(_scored(upscaler, folder, paths, scale, bad))
        if not rows:
            raise NothingMatched(f"none of the {len(paths)} images in {folder} can be scored at x{scale:g}")
        report["scales"][f"{scale:g}"] = _summary(rows)
        if not as_json:
            click.echo(_table(folder.name, scale, rows))
    if as_json:
        print_json(report)
    else:
        click.echo(f"model {identity.version} ({identity.sha256[:12]})")
        click.echo("\n".join(f"{name}: {text}" for name, text in protocol.items()))
    if bad:
        say(f"{len(bad)} of {len(paths)} images could not be scored")
    return 3 if bad else 0


def _scored(upscaler: Upscaler, folder: Path, paths: list[Path], scale: float, bad: set[Path]) -> Any:
    """(name, Comparison) of each image; what cannot be scored is told and remembered in `bad`."""
    from cli.output import live, printable, say
    from vdsr.errors import ImageError
    from vdsr.evaluate import NotComparable, score_degraded
    from worker.images import decode
    from worker.settings import load_settings

    max_pixels = load_settings().max_pixels
    with live(True) as draw:
        for number, path in enumerate(paths, 1):
            name = str(path.relative_to(folder))
            draw(f"x{scale:g}: {number} of {len(paths)}  {printable(name)}")
            try:
                pixels = decode(path.read_bytes(), max_pixels=max_pixels).pixels
                yield name, score_degraded(upscaler, pixels, scale)
            except (ImageError, NotComparable, OSError) as exc:
                bad.add(path)
                say(f"{printable(name)}: {exc}")


def _summary(rows: dict[str, Comparison]) -> dict[str, Any]:
    from vdsr.evaluate import mean_comparison

    def score(score: Score) -> dict[str, float | str | None]:
        exact = score.psnr_y == float("inf")
        return {"psnr_y": "inf" if exact else round(score.psnr_y, 4), "ssim": score.ssim and round(score.ssim, 5)}

    def both(comparison: Comparison) -> dict[str, Any]:
        return {"bicubic": score(comparison.bicubic), "vdsr": score(comparison.vdsr)}

    per_image = [{"image": name, **both(row)} for name, row in rows.items()]
    return {"images": len(rows), **both(mean_comparison(list(rows.values()))), "per_image": per_image}


def _table(title: str, scale: float, rows: dict[str, Comparison]) -> str:
    from cli.output import aligned, printable
    from vdsr.evaluate import mean_comparison

    def line(name: str, row: Comparison) -> tuple[str, ...]:
        scores = (row.bicubic, row.vdsr)
        cells = [f"{s.psnr_y:.2f} / {s.ssim:.4f}" if s.ssim is not None else f"{s.psnr_y:.2f} / -" for s in scores]
        return printable(name), *cells, f"{row.gain_db:+.2f}"

    head = (f"{title} x{scale:g}", "bicubic PSNR-Y / SSIM", "VDSR PSNR-Y / SSIM", "gain dB")
    body = [line(name, row) for name, row in rows.items()]
    mean = line(f"mean of {len(rows)}", mean_comparison(list(rows.values())))
    return aligned([head, *body, mean]) + "\n"
