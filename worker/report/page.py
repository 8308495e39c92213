"""What does the report's page show? One HTML file that needs nothing but a browser, and fetches nothing.

Names are written by Jinja's escaping alone; figures are drawn as SVG by the template from what is reckoned here.
"""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from worker.report.figures import Figures, Timeline
from worker.report.samples import Sample

TEMPLATE = Path(__file__).with_name("report.html")
BINS = 40
"""About so many bars of a histogram."""
WORKERS = 40
"""Most workers of the timeline."""
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's: told apart by colour-blind readers."""


@dataclass(frozen=True)
class Bar:
    """Of a histogram: shares of the width and height, and what it stands for."""

    x: float
    width: float
    height: float
    label: str


@dataclass(frozen=True)
class Lane:
    """A worker's line in the timeline."""

    worker: str
    images: int
    slots: list[tuple[float, float, float, str, str]]
    """Left and width as shares, strength from 0 to 1, colour, label."""


def render(facts: dict[str, Any], figures: Figures, samples: dict[str, Sample], *, chunks: int) -> str:
    """The page.

    Args:
        facts: what report.json holds.
        samples: by key; of the best and worst images.
        chunks: that the job has.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"moment": _moment, "duration": _duration, "db": _db, "gain": _gain}
    colors = {sha: COLORS[n % len(COLORS)] for n, sha in enumerate(figures.models)}
    return environment.from_string(TEMPLATE.read_text("utf-8")).render(
        facts=facts,
        figures=figures,
        chunks=chunks,
        histogram=histogram(figures),
        lanes=lanes(figures.timeline, colors)[:WORKERS],
        more_lanes=max(0, len({worker for worker, _ in figures.timeline.rows}) - WORKERS),
        colors=colors,
        groups=[
            (title, [(row, samples[row.key]) for row in rows])
            for title, rows in (
                ("Least gain" if figures.best else "By gain", figures.worst),
                ("Most gain", figures.best),
            )
            if rows and samples
        ],
        again=_again(facts),
    )


def histogram(figures: Figures) -> dict[str, Any] | None:
    """Bars of the gain over bicubic, and where zero and the median lie as shares of the width."""
    gains = figures.psnr["gain"]
    if not gains.n:
        return None
    low, high = gains.quantile(0), gains.quantile(1)
    assert low is not None
    assert high is not None
    width = next(w for w in (0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 1e9) if (high - low) / w <= BINS)
    bins = gains.bins(width)
    first, span = bins[0][0], width * len(bins)
    tallest = max(count for _, count in bins)
    return {
        "bars": [
            Bar((edge - first) / span, width / span, n / tallest, f"{edge:+.2f} to {edge + width:+.2f} dB: {n:,}")
            for edge, n in bins
        ],
        "low": first,
        "high": first + span,
        "tallest": tallest,
        "marks": [
            ((value - first) / span, name)
            for name, value in (("0", 0.0), ("median", gains.quantile(0.5)))
            if value is not None and first <= value <= first + span
        ],
    }


def lanes(timeline: Timeline, colors: dict[str, str]) -> list[Lane]:
    """A line for each worker, the busiest first."""
    by_worker: dict[str, list[tuple[str, Counter[int]]]] = {}
    for (worker, model), counts in timeline.rows.items():
        by_worker.setdefault(worker, []).append((model, counts))
    most = max((n for counts in timeline.rows.values() for n in counts.values()), default=1)
    slots = max(1, timeline.slots)
    found = []
    for worker, models in by_worker.items():
        drawn: list[tuple[float, float, float, str, str]] = []
        for model, counts in models:
            color, of = colors.get(model, COLORS[0]), f"images by {model[:12]}"
            drawn += [(k / slots, 1 / slots, 0.25 + 0.75 * n / most, color, f"{n:,} {of}") for k, n in counts.items()]
        found.append(Lane(worker, sum(sum(counts.values()) for _, counts in models), drawn))
    return sorted(found, key=lambda lane: (-lane.images, lane.worker))


def _again(facts: dict[str, Any]) -> str | None:
    """The command that does what is missing."""
    if facts["state"] == "completed":
        return shlex.join(["vdsr", "retry", facts["id"]]) if facts["failures"] else None
    return shlex.join(["vdsr", "resume", facts["destination"], "--job", facts["id"]])


def _moment(seconds: float | None) -> str:
    return "-" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, hours = seconds / 60, seconds / 3600
    return f"{minutes:.1f} min" if minutes < 60 else f"{hours:,.1f} h"


def _db(value: float | str | None) -> str:
    return "-" if value is None else "∞" if value == "inf" else f"{float(value):.2f}"


def _gain(value: float | str | None) -> str:
    return "-" if value is None else "∞" if value == "inf" else f"{float(value):+.2f}"
