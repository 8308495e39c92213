"""Puts what the benchmarks found into docs/benchmarks.md and docs/scale.md: tables between markers, and plots beside.

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
RESULTS, PLOTS = ROOT / "benchmarks/results", ROOT / "docs/plots"
PAGES = [ROOT / "docs" / name for name in ("benchmarks.md", "scale.md")]


def main() -> None:
    """Every result that is there."""
    texts = {page: page.read_text() for page in PAGES}
    for name, table in TABLES.items():
        path = RESULTS / f"{name}.json"
        if path.exists():
            found = json.loads(path.read_text())
            body = f"{table(found['rows'])}\n\n{machine(found['machine'])}\n"
            for page, text in texts.items():
                marked = f"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)"
                texts[page] = re.sub(marked, rf"\g<1>{body}\g<2>", text, flags=re.S)
    for page, text in texts.items():
        page.write_text(text)


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


SPENT = ("planning_cpu_s", "doing_cpu_s")


def scale(rows: list[dict[str, Any]]) -> str:
    """Time and memory against the number of images, with the straight line through the first and the last."""
    figure, four = plt.subplots(1, 4, figsize=(13, 3.2), layout="constrained")
    images = [row["images"] for row in rows]
    curves = {
        "processor seconds of planning": [row.get("planning_cpu_s") for row in rows],
        "processor seconds of the ledger's clients": [row.get("doing_cpu_s") for row in rows],
        "Redis at its peak, kB": [row["redis_peak_kb"] for row in rows],
        "processor seconds of the report": [row["report"]["cpu_s"] for row in rows],
    }
    for axes, (name, values) in zip(four, curves.items(), strict=True):
        known = [(n, value) for n, value in zip(images, values, strict=True) if value is not None]
        (most, last), numbers = known[-1], [n for n, _ in known]
        axes.loglog(numbers, [value for _, value in known], "o-")
        axes.loglog(numbers, [last * n / most for n in numbers], "--", color="#94a3b8", label="proportional")
        axes.set_xlabel("images")
        axes.set_title(name, fontsize=9)
        axes.legend(fontsize=8)
    save(figure, four[0], "scale")
    return markdown(
        [
            "images", "`submit`, s (processor)", "planning, µs an image", "ledger and record, µs an image",
            "Redis peak, kB", "bytes an image", "`status`, ms: median, 99%, max", "report: s (processor)", "peak MB",
            "page kB", "CSV MB", "rows",
        ],
        [
            [
                f"{row['images']:,}",
                f"{row['submit_s']:.1f} ({row['submit_cpu_s']:.1f})",
                *(f"{1e6 * row[name] / row['images']:,.0f}" if name in row else "" for name in SPENT),
                f"{row['redis_peak_kb']:,}",
                f"{row['redis_bytes_an_image']:,.1f}",
                " ".join(f"{row['status_ms'][name]:.0f}" for name in ("median", "p99", "max")),
                f"{row['report']['seconds']:.1f} ({row['report']['cpu_s']:.1f})",
                f"{row['report']['peak_mb']:,}",
                f"{row['report']['page_kb']:,}",
                f"{row['report']['csv_mb']:,.1f}",
                f"{row['report']['rows']:,}",
            ]
            for row in rows
        ],
    )  # fmt: skip


def scaling(rows: list[dict[str, Any]]) -> str:
    """Workers side by side."""
    figure, axes = plt.subplots(figsize=(5, 3.4), layout="constrained")
    workers = [row["workers"] for row in rows]
    axes.plot(workers, [row["images_s"] for row in rows], "o-", label="measured")
    axes.plot(workers, [row["images_s"] / row["of_ideal"] for row in rows], "--", color="#94a3b8", label="engine alone")
    axes.set_xlabel("workers")
    axes.set_ylabel("images/s")
    axes.set_ylim(bottom=0)
    axes.legend()
    save(figure, axes, "scaling")
    return markdown(
        ["workers", "images/s", "of the engine alone", "efficiency against one worker"],
        [
            [f"{row['workers']}", f"{row['images_s']:.2f}", f"{row['of_ideal']:.1%}", f"{row['efficiency']:.1%}"]
            for row in rows
        ],
    )


def sharing(rows: list[dict[str, Any]]) -> str:
    """Jobs side by side."""
    small, shares = rows[:-1], rows[-1]
    total = sum(shares[name] for name in ("high", "normal", "low"))
    lines = [
        [row["what"], f"{row['seconds']:.1f} s", f"{row['seconds_in_a_line']:,.0f} s" if len(row) > 2 else ""]
        for row in small
    ]
    told = ", ".join(f"{name} {shares[name]:,} ({shares[name] / total:.0%})" for name in ("high", "normal", "low"))
    return markdown(["job", "from submission to its end", "behind all that waited, reckoned"], lines) + (
        f"\n\n{shares['what'].capitalize()}, of three jobs with more to do than that: {told}."
    )


def comparison(rows: list[dict[str, Any]]) -> str:
    """Against what one would use instead."""

    def still(row: dict[str, Any]) -> str:
        return "for good" if row["killed"]["missing"] else f"{row['killed']['stood_still_s']:.1f}"

    return markdown(
        [
            "way", "first output, s", "images/s", "peak MB", "killed: not done", "done twice", "longest pause, s",
            "seconds in all, quiet / killed",
        ],
        [
            [
                row["way"],
                f"{row['quiet']['first_output_s']:.1f}",
                f"{row['quiet']['images_s']:.1f}",
                f"{row['quiet']['peak_mb']:,.0f}",
                f"{row['killed']['missing']}",
                f"{row['killed']['done_twice']}",
                still(row),
                f"{row['quiet']['wall_s']:.0f} / {row['killed']['wall_s']:.0f}",
            ]
            for row in rows
        ],
    )  # fmt: skip


TABLES: dict[str, Callable[[list[dict[str, Any]]], str]] = {
    "engine": engine,
    "ensemble": ensemble,
    "codecs": codecs,
    "sizes": sizes,
    "photos": jobs,
    "thumbnails": thumbnails,
    "scale": scale,
    "scaling": scaling,
    "sharing": sharing,
    "comparison": comparison,
}

if __name__ == "__main__":
    main()
