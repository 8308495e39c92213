"""How does a training run look to people, and how is one followed? For every command that takes a run's id."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from cli.output import BAR, aligned, duration, live, print_json, printable, say

if TYPE_CHECKING:
    from worker.settings import Settings
    from worker.training.ledger import RunRecord

LOOK_S = 0.4


def is_run(name: str) -> bool:
    """Whether an id is that of a training run, and not of a job."""
    from worker.training.runs import PREFIX

    return name.startswith(PREFIX)


def run_line(facts: dict[str, Any]) -> str:
    """A run's progress in one line."""
    if facts.get("phase") == "reading images":
        return f"reading images: {facts['done']:,} of {facts['total']:,}"
    if "step" not in facts:
        return str(facts.get("phase", "waiting for a training worker"))
    filled = BAR * facts["step"] // facts["steps"]
    parts = [f"[{'#' * filled}{'-' * (BAR - filled)}] {facts['step']:,} of {facts['steps']:,} steps"]
    if facts["loss"] is not None:
        parts.append(f"loss {facts['loss']:.3f}")
    parts.append(f"lr {facts['learning_rate']:.2g}")
    parts += [f"x{scale} {p['vdsr']:.2f} dB ({p['vdsr'] - p['bicubic']:+.2f})" for scale, p in facts["psnr_y"].items()]
    if facts["phase"] != "training":
        parts.append(str(facts["phase"]))
    elif facts["eta_s"] is not None:
        parts.append(f"{duration(facts['eta_s'])} left")
    return ", ".join(parts)


def result_text(result: dict[str, Any]) -> str:
    """What a finished run has made."""
    lines = [
        f"version {printable(result['version'])} ({result['sha256'][:12]}), trained in {duration(result['seconds'])}"
    ]
    if result["psnr_y"]:
        table: list[tuple[str, ...]] = [("PSNR-Y of the validation images", "bicubic", "VDSR", "gain")]
        for scale, p in result["psnr_y"].items():
            table.append((f"x{scale}", f"{p['bicubic']:.2f}", f"{p['vdsr']:.2f}", f"{p['vdsr'] - p['bicubic']:+.2f}"))
        lines.append(aligned(table))
    if result["left_out"]:
        lines.append(f"{result['left_out']:,} files were no usable images and were left out; data.json says why")
    lines.append(f"files: {printable(result['folder'])}")
    if publication := result.get("publication"):
        outcome = "promoted to production" if publication["promoted"] else "published as candidate, not promoted"
        lines.append(f"{outcome}: {publication['reason']}")
        if not publication["promoted"]:
            lines.append(f"'vdsr models promote {printable(result['version'])}' promotes it all the same")
    return "\n".join(lines)


def run_text(record: RunRecord, workers: int) -> str:
    """How a run stands, for reading."""
    run = record.run
    lines = [f"{run.id}  {record.state.value}", f"recipe {run.recipe.name}, data {', '.join(map(printable, run.data))}"]
    if record.result:
        lines.append(result_text(record.result))
    else:
        progress = {**record.progress, "eta_s": None} if record.state.ended else record.progress
        lines += [run_line(progress), f"files: {printable(run.folder)}"]
    if record.error:
        lines.append(f"error: {record.error}")
    if record.state.value in ("failed", "cancelled"):
        lines.append(f"its files stay: the same 'vdsr train' with --run {printable(run.folder)} goes on from there")
    if not (workers or record.state.ended):
        lines.append(
            "no training worker seen in the last 30 s; start 'vdsr worker --queue train', or 'vdsr dev --train'"
        )
    return "\n".join(lines)


def run_facts(record: RunRecord) -> dict[str, Any]:
    """How a run stands, for scripts."""
    run = record.run
    return {
        "id": run.id,
        "state": record.state.value,
        "error": record.error,
        "version": run.version,
        "data": list(run.data),
        "recipe": run.recipe.to_dict(),
        "folder": run.folder,
        "publish": run.publish,
        "created": record.created,
        "finished": record.finished,
        "seconds": record.seconds,
        "progress": record.progress,
        "result": record.result,
    }


def show_run(settings: Settings, run_id: str, *, as_json: bool) -> int:
    """Tell how a run stands."""
    from worker.app import TRAINING
    from worker.fleet import Fleet
    from worker.training.ledger import RunLedger

    record = RunLedger(settings.redis_url).record(run_id)
    workers = len(Fleet(settings.redis_url).workers(TRAINING))
    if as_json:
        print_json({**run_facts(record), "workers": workers})
    else:
        click.echo(run_text(record, workers))
    return 0


def follow_run(settings: Settings, run_id: str, *, as_json: bool = False, timeout_s: float | None = None) -> int:
    """Watch a run until it has ended; the exit code says how. Ctrl-C leaves it running."""
    from worker.training.ledger import RunLedger

    ledger = RunLedger(settings.redis_url)
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    try:
        with live(not as_json) as draw:
            record = ledger.record(run_id)
            while not record.state.ended:
                if deadline is not None and time.monotonic() >= deadline:
                    say(f"run {run_id} has not ended after {timeout_s:g} s; see 'vdsr status {run_id}'")
                    return 124
                draw(run_line(record.progress))
                time.sleep(LOOK_S)
                record = ledger.record(run_id)
    except KeyboardInterrupt:
        say(f"left; the run goes on. 'vdsr train --attach {run_id}' follows it again, 'vdsr cancel {run_id}' stops it")
        return 130
    if as_json:
        print_json(run_facts(record))
    else:
        say(run_text(record, 1))
    return exit_code(record.state.value, record.result)


def exit_code(state: str, result: dict[str, Any]) -> int:
    """0, 3 where a publication was asked for and not promoted, 4 where the run failed or was cancelled."""
    if state != "completed":
        return 4
    return 0 if result.get("publication", {"promoted": True})["promoted"] else 3
