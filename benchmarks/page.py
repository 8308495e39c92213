"""Puts what the benchmarks found into docs/benchmarks.md: tables between its markers, and plots beside it.

python benchmarks/page.py      # reads benchmarks/results/*.json, as `make bench` leaves them
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt

mpl.use("Agg")
mpl.rcParams["svg.hashsalt"] = "vdsr"  # the same figures give the same file

ROOT = Path(__file__).parents[1]
RESULTS, PAGE, PLOTS = ROOT / "benchmarks/results", ROOT / "docs/benchmarks.md", ROOT / "docs/plots"


def main() -> None:
    """Every result that is there."""
    text = PAGE.read_text()
    for name, table in TABLES.items():
        path = RESULTS / f"{name}.json"
        if path.exists():
            found = json.loads(path.read_text())
            body = f"{table(found['rows'])}\n\n{machine(found['machine'])}\n"
            text = re.sub(f"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", rf"\g<1>{body}\g<2>", text, flags=re.S)
    PAGE.write_text(text)


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table, the first column of words and the others of figures."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine(m: dict[str, Any]) -> str:
    """Where it was measured."""
    packages = ", ".join(f"{name} {version}" for name, version in m["packages"].items())
    return f"{m['device']}, {m['threads']} threads; Python {m['python']}, {packages}."


def engine(rows: list[dict[str, Any]]) -> str:
    """Ways of computing the network."""
    figure, axes = plt.subplots(figsize=(7, 0.45 * len(rows) + 0.8), layout="constrained")
    colours = ["#c2410c" if row["way"].startswith("vdsr") else "#94a3b8" for row in rows]
    bars = axes.barh([row["way"] for row in rows], [row["ratio"] for row in rows], color=colours)
    axes.bar_label(bars, [f"{row['ratio']:.1f} x" for row in rows], padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.1)  # room for the labels
    axes.set_xlabel("times the speed of the eager way")
    save(figure, axes, "engine")
    return markdown(
        ["way", "MP/s", "ratio", "largest error, code values", "dB lost at x4"],
        [
            [
                row["way"],
                f"{row['mp_s']:.3f}",
                f"{row['ratio']:.2f}",
                f"{row['error']:.4f}",
                f"{row['lost_db']:.4f}",
            ]
            for row in rows
        ],
    )


def codecs(rows: list[dict[str, Any]]) -> str:
    """Encoders and decoders."""
    return markdown(
        ["codec", "ms/MP", "two at once", "MB for 4 MP", "threads for 200 MP/s"],
        [
            [
                row["way"],
                f"{row['ms_mp']:.1f}",
                f"{row['two_at_once']:.2f} x",
                f"{row['bytes'] / 1e6:.2f}",
                f"{row['threads_for_gpu']:.1f}",
            ]
            for row in rows
        ],
    )


def sizes(rows: list[dict[str, Any]]) -> str:
    """Time and memory against the size of an image."""
    figure, both = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for image_format in dict.fromkeys(row["format"] for row in rows):
        mine = [row for row in rows if row["format"] == image_format]
        megapixels = [row["megapixels"] for row in mine]
        both[0].plot(megapixels, [row["seconds"] for row in mine], "o-", label=image_format)
        both[1].plot(megapixels, [row["peak_mb"] for row in mine], "o-", label=image_format)
    for axes, unit in zip(both, ("seconds", "peak memory, MB"), strict=True):
        axes.set_xlabel("megapixels of the output")
        axes.set_ylabel(unit)
        axes.set_ylim(bottom=0)
        axes.legend()
    save(figure, both[0], "sizes")
    return markdown(
        ["output", "MP", "seconds", "of which network", "s/MP", "peak MB"],
        [
            [
                row["format"],
                f"{row['megapixels']:.1f}",
                f"{row['seconds']:.2f}",
                f"{row['network_s']:.2f}",
                f"{row['seconds'] / row['megapixels']:.2f}",
                f"{row['peak_mb']:,}",
            ]
            for row in rows
        ],
    )


def jobs(rows: list[dict[str, Any]]) -> str:
    """Whole jobs."""
    return markdown(
        ["images", "MP", "job, s", "network, s", "ratio", "ms an image beside it", "worker's peak MB"],
        [
            [
                f"{row['images']:,}",
                f"{row['megapixels']:,.1f}",
                f"{row['wall_s']:.1f}",
                f"{row['stages_s']['network']:.1f}",
                f"{row['wall_s'] / row['stages_s']['network']:.3f}",
                f"{1000 * (row['wall_s'] - row['stages_s']['network']) / row['images']:.2f}",
                f"{row['peak_rss_mb']:,}",
            ]
            for row in rows
        ],
    )


def thumbnails(rows: list[dict[str, Any]]) -> str:
    """Jobs of more and more small images."""
    figure, both = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    images = [row["images"] for row in rows]
    both[0].loglog(images, [row["wall_s"] for row in rows], "o-", label="job")
    both[0].loglog(images, [row["stages_s"]["network"] for row in rows], "o--", label="network alone")
    both[1].semilogx(images, [row["peak_rss_mb"] for row in rows], "o-", label="worker's peak")
    for axes, unit in zip(both, ("seconds", "MB"), strict=True):
        axes.set_xlabel("images of 64 x 64")
        axes.set_ylabel(unit)
        axes.legend()
    both[1].set_ylim(bottom=0)
    save(figure, both[0], "thumbnails")
    return jobs(rows)


def save(figure: plt.Figure, axes: plt.Axes, name: str) -> None:
    """As SVG, without a date."""
    axes.set_axisbelow(True)
    figure.savefig(PLOTS / f"{name}.svg", metadata={"Date": None})
    plt.close(figure)


def ensemble(rows: list[dict[str, Any]]) -> str:
    """The self-ensemble against a single pass."""
    return markdown(
        ["output", "engine", "time", "processor time"],
        [[r["size"], r["engine"], f"{r['wall_ratio']:.2f} x", f"{r['processor_ratio']:.2f} x"] for r in rows],
    )


TABLES: dict[str, Callable[[list[dict[str, Any]]], str]] = {
    "engine": engine,
    "ensemble": ensemble,
    "codecs": codecs,
    "sizes": sizes,
    "photos": jobs,
    "thumbnails": thumbnails,
}

if __name__ == "__main__":
    main()
