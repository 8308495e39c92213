"""Draw Grafana's dashboard over a fleet at work, into docs/figures/dashboard.png: `make screenshots`.

Two workers do jobs with damaged pictures among them, one is killed, a model is promoted; Prometheus watches, and
answers every panel's own query. matplotlib draws what it says, at the places that the dashboard gives: Grafana's own
drawing is prettier. Needs Prometheus.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from PIL import Image

from worker.embedded import SOCKET, LocalRedis, guarded, worker_command, worker_environment
from worker.settings import load_settings

mpl.use("Agg")

ROOT = Path(__file__).parents[1]
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "vdsr.json"
FIGURE = ROOT / "docs" / "figures" / "dashboard.png"
PORTS = {"one": 9540, "two": 9542}
"""Of the workers' metrics."""
FLEET, PROMETHEUS = 9541, 9590
STEP_S, WINDOW = 2, "20s"
"""Between two points, and instead of Grafana's $__rate_interval."""
JOBS, IMAGES, DAMAGED = 4, 60, 3
COLOURS = ["#7eb26d", "#eab839", "#6ed0e0", "#ef843c", "#e24d42", "#1f78c1", "#ba43a9", "#705da0"]
INK, PAPER, PANEL = "#d8d9da", "#111217", "#181b1f"


def main() -> None:
    """Work, and draw."""
    if not shutil.which("prometheus"):
        sys.exit("this needs Prometheus on the PATH")
    with tempfile.TemporaryDirectory(prefix="vdsr-") as name:
        begin = time.time()
        with ExitStack() as stack:
            work(Path(name), stack)
            draw(begin, time.time())


def work(folder: Path, stack: ExitStack) -> None:
    """A few minutes of a fleet's life; Prometheus still runs afterwards."""
    settings = dataclasses.replace(
        load_settings(),
        redis_url=f"unix://{folder / SOCKET}",
        registry=str(folder / "models"),
        chunk_images=10,
        lease_s=6,
    )
    environment = worker_environment(settings)

    def vdsr(*words: str | Path, may_fail: bool = False) -> str:
        command = [sys.executable, "-m", "cli.main", *map(str, words)]
        done = subprocess.run(command, cwd=folder, env=environment, check=False, capture_output=True, text=True)
        if done.returncode and not may_fail:
            sys.exit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}")
        return done.stdout

    stack.enter_context(LocalRedis(folder))
    guards = {name: start(name, folder, environment, stack) for name in PORTS}
    exporter = [sys.executable, "-m", "cli.main", "metrics", "--port", str(FLEET)]
    stack.enter_context(guarded(exporter, log=folder / "exporter.log", cwd=folder, env=environment))
    stack.enter_context(guarded(watch(folder), log=folder / "prometheus.log", cwd=folder))
    for n in range(JOBS):
        pictures(folder / f"in-{n}", seed=n)
    submit = ("submit", "--scale", "2", "--model", "follow")
    jobs = [vdsr(*submit, folder / f"in-{n}", folder / f"out-{n}").split()[0] for n in range(2)]
    time.sleep(40)
    subprocess.run([shutil.which("pkill") or "pkill", "-KILL", "-P", str(guards["two"])], check=True)
    time.sleep(15)
    start("two", folder, environment, stack)
    for n in range(2, JOBS):
        jobs.append(vdsr(*submit, folder / f"in-{n}", folder / f"out-{n}").split()[0])
        vdsr(
            "models", "publish", ROOT / "vdsr" / "weights" / "vdsr.safetensors", "--version", f"2026.1{n}", "--promote"
        )
        time.sleep(20)
    for job in jobs:
        vdsr("wait", job, may_fail=True)  # damaged pictures
    time.sleep(10)


def start(name: str, folder: Path, environment: dict[str, str], stack: ExitStack) -> int:
    """A worker; the process that guards it."""
    mine = {**environment, "VDSR_METRICS_PORT": str(PORTS[name]), "VDSR_THREADS": "1"}
    process = guarded(worker_command(name=f"{name}@%h"), log=folder / f"{name}.log", cwd=folder, env=mine)
    return stack.enter_context(process).pid


def watch(folder: Path) -> list[str]:
    """The command of a Prometheus that asks all of them."""
    targets = [f"127.0.0.1:{port}" for port in (*PORTS.values(), FLEET)]
    config = {
        "global": {"scrape_interval": f"{STEP_S}s"},
        "scrape_configs": [{"job_name": "vdsr", "static_configs": [{"targets": targets}]}],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    place = [f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'tsdb'}"]
    return ["prometheus", *place, f"--web.listen-address=127.0.0.1:{PROMETHEUS}"]


def pictures(folder: Path, seed: int) -> None:
    """Parts of the sample photographs, some of them damaged."""
    folder.mkdir()
    sources = [Image.open(path).convert("RGB") for path in sorted((ROOT / "examples" / "photos").glob("*.*g"))]
    for n in range(IMAGES):
        source = sources[(n + seed) % len(sources)]
        left, top = 7 * n % max(1, source.width - 320), 5 * n % max(1, source.height - 240)
        source.crop((left, top, left + 320, top + 240)).save(folder / f"{n:03d}.png")
    for n in range(0, IMAGES, IMAGES // DAMAGED):
        (folder / f"{n:03d}.png").write_bytes((folder / f"{n:03d}.png").read_bytes()[:5000] if n else b"")


# --- drawing ---------------------------------------------------------------------------------------------------------


def draw(begin: float, end: float) -> None:
    """Every panel at its place."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    mpl.rcParams.update(
        {"font.size": 8, "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK}
    )
    figure = plt.figure(figsize=(14, 0.27 * rows), facecolor=PAPER)
    for panel in panels:
        x, y, w, h = (panel["gridPos"][name] for name in "xywh")
        if panel["type"] == "row":
            figure.text(0.01, 1 - (y + 0.8) / rows, panel["title"], weight="bold", size=11)
            continue
        place = (x / 24 + 0.03, 1 - (y + h - 0.9) / rows, w / 24 - 0.04, (h - 2.1) / rows)
        axes = figure.add_axes(place, facecolor=PANEL)
        axes.set_title(panel["title"], loc="left", color=INK, size=9)
        for side in axes.spines.values():
            side.set_visible(False)
        found = [series for target in panel["targets"] for series in answers(target, begin, end)]
        defaults = panel["fieldConfig"]["defaults"]
        if panel["type"] == "stat":
            stat(axes, found, defaults["unit"])
        elif panel["type"] == "table":
            table(axes, found)
        else:
            lines(axes, found, stacked=defaults["custom"]["stacking"]["mode"] == "normal")
            axes.set_ylabel(defaults["unit"])
            axes.set_ylim(bottom=defaults["min"])
            axes.set_xlabel("minutes", loc="right", labelpad=-8)
    figure.savefig(FIGURE, dpi=100, facecolor=PAPER)
    Image.open(FIGURE).convert("RGB").quantize(256).save(FIGURE, optimize=True)


Series = tuple[str, list[tuple[float, float]]]
"""Legend, and (minutes since the begin, value)."""


def answers(target: dict[str, Any], begin: float, end: float) -> list[Series]:
    """What Prometheus says to a panel's query."""
    expression = target["expr"].replace("$__rate_interval", WINDOW)
    words = urllib.parse.urlencode({"query": expression, "start": begin, "end": end, "step": STEP_S})
    with urllib.request.urlopen(f"http://127.0.0.1:{PROMETHEUS}/api/v1/query_range?{words}", timeout=30) as answer:
        result = json.loads(answer.read())["data"]["result"]
    legend = target.get("legendFormat") or " ".join(f"{{{{{name}}}}}" for name in ("version", "sha"))
    found = []
    for each in result:
        labels = {**each["metric"], "sha": each["metric"].get("sha", "")[:12]}
        name = re.sub(r"{{(\w+)}}", lambda match, labels=labels: labels.get(match[1], ""), legend)
        found.append((name, [((moment - begin) / 60, float(v)) for moment, v in each["values"] if v != "NaN"]))
    return found


def stat(axes: Axes, found: list[Series], unit: str) -> None:
    """The figure in the midst of the time, when all of them work; the last one would be nought."""
    series = found[0][1] if found else []
    value = series[len(series) // 2][1] if series else None
    text = "no data" if value is None else f"{value:.1%}" if unit == "percentunit" else f"{value:.0f}"
    axes.text(0.5, 0.45, text + (" s" if unit == "s" else ""), ha="center", va="center", size=20, color=COLOURS[0])
    axes.set(xticks=[], yticks=[], xlim=(0, 1), ylim=(0, 1))


def table(axes: Axes, found: list[Series]) -> None:
    """What holds at the end."""
    last = max((series[-1][0] for _, series in found), default=0)
    for n, (name, series) in enumerate(each for each in found if each[1][-1][0] == last):
        axes.text(0.02, 0.9 - 0.15 * n, f"{name}: {series[-1][1]:.0f}", va="top")
    axes.set(xticks=[], yticks=[], xlim=(0, 1), ylim=(0, 1))


def lines(axes: Axes, found: list[Series], *, stacked: bool) -> None:
    """Curves over the minutes."""
    below: dict[float, float] = {}
    for n, (name, series) in enumerate(found):
        minutes = [minute for minute, _ in series]
        floor = [below.get(minute, 0.0) if stacked else 0.0 for minute in minutes]
        top = [value + under for (_, value), under in zip(series, floor, strict=True)]
        below.update(zip(minutes, top, strict=True))
        colour = COLOURS[n % len(COLOURS)]
        axes.plot(minutes, top, color=colour, linewidth=1.2, label=name)
        axes.fill_between(minutes, floor, top, color=colour, alpha=0.15, linewidth=0)
    if found:
        axes.legend(loc="upper left", fontsize=7, facecolor=PANEL, edgecolor="none", labelcolor=INK, ncols=2)
    axes.grid(color="#2c3235", linewidth=0.5)
    axes.margins(y=0.3)


if __name__ == "__main__":
    main()
