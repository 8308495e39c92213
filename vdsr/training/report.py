"""What did a run do, and what do its weights look like? One HTML page that answers and needs nothing but a browser.

Curves are SVG with text that stays text, sample crops are PNG, all of it inside the page. The same input gives the
same bytes.
"""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vdsr.color import y_to_gray
from vdsr.data import FULL, Picture
from vdsr.errors import VdsrError
from vdsr.evaluate import code_values
from vdsr.metrics import psnr_y
from vdsr.model import VDSR
from vdsr.training.recipe import as_scale
from vdsr.training.trainer import WINDOW, computes_bf16, validate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TEMPLATE = Path(__file__).with_name("report.html")
CROP = 96
"""Side in pixels of a sample: small enough to be shown three times its size beside two others."""
PAPER: dict[float, tuple[float, float]] = {2: (33.66, 37.53), 3: (30.39, 33.66), 4: (28.42, 31.35)}
"""Mean PSNR-Y on Set5 of bicubic and of VDSR, as Kim, Lee and Lee (CVPR 2016) print them."""
INK = "#123456"
"""Stands for the page's own text colour until the SVG is written: CSS chooses it, light or dark."""
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", INK, "#f0e442")
"""Okabe and Ito's, told apart by colour-blind readers. Their first blue is too dark for black: CSS takes the other."""
MARKERS = "os^Dv<>"
LOOK = {
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "figure.figsize": (4.8, 3.0),  # inches of 72 units: on a phone's width a unit is about a pixel
    "font.size": 9,
    "grid.alpha": 0.15,
    "grid.color": INK,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.4,
    "lines.markersize": 3.5,
    "svg.fonttype": "none",  # text, to be found, read out and shown in the page's font
    "svg.hashsalt": "vdsr",  # ids are the same every time
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
DATA_WORDS = {"digest": "digest of all images and their split", "validation": "digest of validation images"}
LOSSES = {
    "l1": "Mean absolute error in 8-bit code values.",
    "l2": "Half the squared error summed over a patch, of values in [0, 1].",
}


@dataclass(frozen=True)
class Score:
    """PSNR-Y in dB at a scale."""

    scale: float
    bicubic: float
    network: float

    @property
    def gain(self) -> float:
        """What the network adds; 0 where both are perfect."""
        return 0.0 if self.network == self.bicubic else self.network - self.bicubic


@dataclass(frozen=True)
class Validation:
    """What one look at the validation images found."""

    step: int
    scores: dict[float, Score]


@dataclass(frozen=True)
class Plot:
    """A drawing, its title and what has to be said about it."""

    name: str
    title: str
    svg: str
    note: str


@dataclass(frozen=True)
class Pane:
    """One picture of a sample."""

    name: str
    png: str
    """As a data URI."""
    width: int
    height: int
    psnr_y: float | None
    """Of these very pixels; None for the truth."""


@dataclass(frozen=True)
class Sample:
    """A crop of a validation picture: bicubic, network, truth."""

    rank: str
    sha256: str
    score: Score
    """On the window that validation looks at, by which the picture was chosen."""
    panes: list[Pane]


def write_report(record: dict[str, Any], rows: list[dict[str, Any]], model: VDSR, pictures: Sequence[Picture]) -> str:
    """The page about a run, finished or not, as HTML.

    Costs one validation and three small crops a scale.

    Args:
        record: what run.json holds.
        rows: what log.jsonl holds.
        model: the network that the run has made, on any device.
        pictures: the validation images.

    Raises:
        VdsrError: matplotlib or jinja2 is not installed.
    """
    try:
        import jinja2
        import matplotlib.style
    except ImportError as exc:
        raise VdsrError("the training report needs matplotlib and jinja2: pip install 'vdsr[train]'") from exc
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"db": _db, "gain": _gain, "duration": _duration, "value": _value}
    sessions = record["sessions"]
    # A state may be ahead of the last row: a run that was resumed had come as far as that.
    step: int = max(0, *(row["step"] for row in rows[-1:]), *(session["from_step"] for session in sessions[-1:]))
    validations = _validations(rows)
    resumes = _resumes(sessions)
    with matplotlib.style.context(["default", LOOK]):  # whatever matplotlibrc this machine has
        plots = _plots(record["recipe"], rows, validations, resumes, step)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        record=record,
        data_words=DATA_WORDS,
        step=step,
        seconds=rows[-1]["seconds"] if rows else None,
        devices=list(dict.fromkeys(session["device"] for session in sessions)),
        last=validations[-1] if validations else None,
        plots=plots,
        resumes=resumes,
        samples=_samples(model, pictures),
        pictures=len(pictures),
        window=WINDOW,
    )


def _validations(rows: list[dict[str, Any]]) -> list[Validation]:
    return [Validation(row["step"], _scores(row["psnr_y"])) for row in rows if row.get("psnr_y")]


def _scores(figures: dict[str, list[float]]) -> dict[float, Score]:
    """By scale, from the log."""
    return {as_scale(text): Score(as_scale(text), *pair) for text, pair in figures.items()}


def _resumes(sessions: list[dict[str, Any]]) -> list[int]:
    """Steps from which the run went on; those of a history that was begun anew are left out."""
    steps = [session["from_step"] for session in sessions]
    begun = max((i for i, step in enumerate(steps) if step == 0), default=0)
    return sorted({step for step in steps[begun:] if step})


# Curves


def _plots(
    recipe: dict[str, Any],
    rows: list[dict[str, Any]],
    validations: list[Validation],
    resumes: list[int],
    last: int,
) -> list[Plot]:
    """Every curve that there are rows for, against the steps up to the last."""
    if not rows:
        return []
    drawn: list[tuple[str, str, Callable[[Axes], str]]] = [
        ("loss", "Loss", lambda axes: _draw_loss(axes, rows, recipe)),
        ("rate", "Learning rate", lambda axes: _draw_rate(axes, rows)),
    ]
    if validations:
        drawn[1:1] = [
            ("psnr", "PSNR-Y", lambda axes: _draw_psnr(axes, validations)),
            ("gain", "Gain over bicubic", lambda axes: _draw_gain(axes, validations)),
        ]
    return [_plot(name, title, draw, last, resumes) for name, title, draw in drawn]


def _plot(name: str, title: str, draw: Callable[[Axes], str], last: int, resumes: list[int]) -> Plot:
    """Against the steps up to the last; `draw` draws the curves and returns the note."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    figure = Figure()
    axes = figure.add_subplot()
    axes.set_xlim(0, 1.02 * max(last, 1))
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    note = draw(axes)
    for step in resumes:
        axes.axvline(step, color=INK, alpha=0.6, linewidth=0.8, linestyle=":", gid=f"resumed-{step}")
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return Plot(name, title, _inline(file.getvalue(), name), note)


def _draw_loss(axes: Axes, rows: list[dict[str, Any]], recipe: dict[str, Any]) -> str:
    steps, losses = np.array([[row["step"], row["loss"]] for row in rows], float).T
    span = max(1, len(rows) // 20) // 2 * 2 + 1
    weights = np.ones(span)
    mean = np.convolve(losses, weights)[span // 2 :][: len(rows)]
    mean /= np.convolve(np.ones(len(rows)), weights)[span // 2 :][: len(rows)]
    marker = "o" if len(rows) == 1 else ""
    smooth = span > 1
    axes.plot(steps, losses, color=COLORS[0], alpha=0.5 if smooth else 1, linewidth=0.8, marker=marker)
    if smooth:
        axes.plot(steps, mean, color=COLORS[0])
    # The first steps would press all that follows into a line.
    settled = losses[steps > recipe["warmup"]]
    low, high = np.percentile(settled if len(settled) else losses, (0, 99))
    margin = 0.08 * (high - low) or 0.05 * abs(high) or 1
    axes.set_ylim(low - margin, high + margin)
    axes.set_ylabel("loss")
    note = LOSSES[recipe["loss"]]
    if smooth:
        note += f" Faint: as logged; strong: the mean of {span} rows."
    if above := int((losses > high + margin).sum()):
        note += f" Above the frame: {above} of {len(rows)} rows, up to {losses.max():g}."
    return note


def _draw_psnr(axes: Axes, validations: list[Validation]) -> str:
    for color, scale in _draw_scales(axes, validations, lambda score: score.network):
        level = validations[-1].scores[scale].bicubic
        if math.isfinite(level):
            axes.axhline(level, color=color, linestyle="--", linewidth=1)
    axes.autoscale_view(scalex=False)  # a level within the margin would else lie on the axis
    axes.set_ylabel("PSNR-Y, dB")
    _legend(axes, "bicubic")
    return "Solid: the network; dashed: bicubic interpolation of the same images."


def _draw_gain(axes: Axes, validations: list[Validation]) -> str:
    printed = []
    for color, scale in _draw_scales(axes, validations, lambda score: score.gain):
        if scale in PAPER:
            gain = Score(scale, *PAPER[scale]).gain
            axes.axhline(gain, color=color, linestyle="--", linewidth=1)
            printed.append(f"{_gain(gain)} dB at ×{scale}")
    axes.autoscale_view(scalex=False)
    axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    axes.set_ylabel("gain, dB")
    _legend(axes, "paper, on Set5" if printed else None)
    if not printed:
        return ""
    return (
        f"Solid: on the validation images. Dashed: the paper's mean gain on Set5, other images ({', '.join(printed)}; "
        "Kim, Lee and Lee, CVPR 2016). It tells an order of magnitude and is no target: the set decides the gain."
    )


def _draw_rate(axes: Axes, rows: list[dict[str, Any]]) -> str:
    steps, rates = np.array([[row["step"], row["learning_rate"]] for row in rows], float).T
    axes.plot(steps, rates, color=COLORS[0], marker="o" if len(rows) == 1 else "")
    axes.set_ylim(0, max(rates.max() * 1.08, 1e-12))
    axes.set_ylabel("learning rate")
    return ""


def _draw_scales(
    axes: Axes, validations: list[Validation], figure: Callable[[Score], float]
) -> list[tuple[str, float]]:
    """A line for each scale; their colours and scales."""
    steps = [validation.step for validation in validations]
    sparse = max(1, len(steps) // 10)
    scales = sorted(validations[-1].scores)
    for color, marker, scale in zip(COLORS, MARKERS, scales, strict=False):
        values = np.array([figure(v.scores[scale]) if scale in v.scores else math.nan for v in validations])
        values[~np.isfinite(values)] = math.nan  # of flat pictures, where bicubic is perfect
        axes.plot(steps, values, color=color, marker=marker, markevery=sparse, label=f"×{scale}")
    return list(zip(COLORS, scales, strict=False))


def _legend(axes: Axes, dashed: str | None) -> None:
    """Above the curves, never over them."""
    from matplotlib.lines import Line2D

    handles, labels = axes.get_legend_handles_labels()
    if dashed:
        handles, labels = [*handles, Line2D([], [], color=INK, linestyle="--", linewidth=1)], [*labels, dashed]
    axes.legend(
        handles,
        labels,
        ncols=len(labels),
        loc="lower left",
        bbox_to_anchor=(0, 1),
        borderaxespad=0.2,
        columnspacing=1.2,
        handlelength=1.8,
    )


def _inline(svg: str, name: str) -> str:
    """A file of SVG as a part of a page, with ids that no other part has."""
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg[svg.index("<svg") :]).replace("xlink:href", "href")
    svg = re.sub(r'( id="| href="#|url\(#)', rf"\g<1>{name}-", svg)
    return (
        svg.replace("<svg", f'<svg role="img" aria-labelledby="{name}"', 1)
        .replace(INK, "currentColor")
        .replace(COLORS[0], "var(--blue)")
    )


# Samples


def _samples(model: VDSR, pictures: Sequence[Picture]) -> dict[float, list[Sample]]:
    """For each scale the pictures with the least, the median and the largest gain."""
    figures = [validate(model, [picture]) for picture in pictures]
    samples: dict[float, list[Sample]] = {}
    for scale in sorted(pictures[0].bicubic) if pictures else ():
        scores = [Score(scale, *found[scale]) for found in figures]
        samples[scale] = [
            Sample(rank, pictures[i].sha256, scores[i], _panes(model, pictures[i], scale))
            for rank, i in _chosen([score.gain for score in scores])
        ]
    return samples


def _chosen(gains: list[float]) -> list[tuple[str, int]]:
    """Ranks and indices, the least gain first; none twice where there are fewer than three."""
    order = sorted(range(len(gains)), key=gains.__getitem__)
    if len(order) == 1:
        return [("only", 0)]
    ranks = {order[(len(order) - 1) // 2]: "median"} | {order[0]: "worst", order[-1]: "best"}
    return [(ranks[i], i) for i in order if i in ranks]


def _panes(model: VDSR, picture: Picture, scale: float) -> list[Pane]:
    crop = _most_lost(picture, scale)
    truth = _fractions(picture.hr[crop])
    restored = {"bicubic": _fractions(picture.bicubic[scale][crop]), "network": _restored(model, picture, scale, crop)}
    height, width = truth.shape
    return [
        Pane(name, _png(y), width, height, psnr_y(code_values(y), code_values(truth), shave=0))
        for name, y in restored.items()
    ] + [Pane("truth", _png(truth), width, height, None)]


def _most_lost(picture: Picture, scale: float) -> tuple[slice, slice]:
    """Where in the window that validation looks at bicubic's squared error is largest: what there is to restore."""
    corner = [max(0, n // 2 - WINDOW // 2) for n in picture.hr.shape]
    window = tuple(slice(start, n // 2 + WINDOW // 2) for start, n in zip(corner, picture.hr.shape, strict=True))
    lost = (picture.hr[window].astype(np.int64) - picture.bicubic[scale][window]) ** 2
    height, width = (min(CROP, n) for n in lost.shape)
    sums = np.pad(lost.cumsum(0).cumsum(1), ((1, 0), (1, 0)))  # whole numbers: exact, the same everywhere
    boxes = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    row, column = divmod(int(boxes.argmax()), boxes.shape[1])
    top, left = corner[0] + row, corner[1] + column
    return slice(top, top + height), slice(left, left + width)


@torch.no_grad()
def _restored(model: VDSR, picture: Picture, scale: float, crop: tuple[slice, slice]) -> NDArray[np.float32]:
    """(H, W) float32, not clamped: what the network makes of a crop, with all the surroundings that it sees."""
    device = next(model.parameters()).device
    halo = model.config.halo
    read = tuple(slice(max(0, part.start - halo), part.stop + halo) for part in crop)
    kept = tuple(slice(part.start - r.start, part.stop - r.start) for part, r in zip(crop, read, strict=True))
    low = _fractions(picture.bicubic[scale][read])
    y = torch.from_numpy(low)[None, None].to(device, memory_format=torch.channels_last)
    with torch.autocast(device.type, torch.bfloat16, enabled=computes_bf16(device)):
        residual = model.residual(y).float()
    restored: NDArray[np.float32] = (y + residual)[0, 0].cpu().numpy()[kept]
    return restored


def _png(y: NDArray[np.float32]) -> str:
    """A data URI of (H, W) studio-range luminance / 255, stretched so that black is black and white is white."""
    buffer = io.BytesIO()
    Image.fromarray(code_values(y_to_gray(y))).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _fractions(plane: NDArray[np.uint16]) -> NDArray[np.float32]:
    """In [0, 1]."""
    return plane.astype(np.float32) / np.float32(FULL)


# Words


def _db(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "∞"


def _gain(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−") if math.isfinite(value) else "∞"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 2:
        return f"{round(seconds)} s"
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"


def _value(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
