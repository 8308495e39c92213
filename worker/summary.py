"""How does a job stand, in figures? The one reading of a ledger record that status, job.json and exit codes share."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from worker.jobs import State
from worker.ledger import Record


def summarise(record: Record) -> dict[str, Any]:
    """The object that `vdsr status --json` prints."""
    job, counters = record.job, record.counters
    count = {name: int(counters.get(name, 0)) for name in ("images", "ignored", "done", "failed", "skipped")}
    seconds = record.seconds
    megapixels = counters.get("pixels", 0) / 1e6
    left = _megapixels_left(record)
    return {
        "id": job.id,
        "state": record.state.value,
        "error": record.error,
        "source": job.places[0],
        "destination": job.places[1],
        "scale": None if job.options.sized else job.options.scale,
        "target": job.options.target,
        "priority": job.options.priority,
        "listed": record.listed,
        "images": {
            "total": count["images"],
            "done": count["done"],
            "failed": count["failed"],
            "skipped": count["skipped"],
            "ignored": count["ignored"],
        },
        "failures": {
            name.removeprefix("fail:"): int(n) for name, n in sorted(counters.items()) if name.startswith("fail:") and n
        },
        "psnr": _psnr(record),
        "model": {"version": job.model.version, "sha256": job.model.sha256},
        "megapixels": round(megapixels, 3),
        "megapixels_per_second": round(megapixels / seconds, 3) if seconds > 0 else None,
        "seconds": round(seconds, 1),
        "megapixels_left": left,
        "eta_s": None if left is None or seconds <= 0 else round(left * seconds / megapixels, 1),
        "created": _iso(record.created),
        "finished": _iso(record.finished),
    }


def exit_code(summary: dict[str, Any]) -> int:
    """0 all well, 3 finished with failures, 4 failed or cancelled; 0 also while it runs."""
    if summary["state"] in (State.FAILED, State.CANCELLED):
        return 4
    if summary["state"] == State.COMPLETED and summary["images"]["failed"]:
        return 3
    return 0


def _psnr(record: Record) -> dict[str, Any]:
    """Means over the images that have a finite figure; `exact` ones (infinite dB) and `without` are counted apart."""
    counters = record.counters
    n = int(counters.get("psnr_n", 0))
    means = [counters.get(f"psnr_{name}_sum", 0) / n if n else None for name in ("bicubic", "vdsr")]
    bicubic, vdsr = means
    return {
        "kind": "reference" if record.job.options.reference else "self-degradation",
        "images": n,
        "bicubic": None if bicubic is None else round(bicubic, 4),
        "vdsr": None if vdsr is None else round(vdsr, 4),
        "gain": None if bicubic is None or vdsr is None else round(vdsr - bicubic, 4),
        "exact": int(counters.get("psnr_exact", 0)),
        "without": int(counters.get("psnr_none", 0)),
    }


def _megapixels_left(record: Record) -> float | None:
    """Of outputs, if the images that wait have as many pixels a byte as those that were made; None if not known."""
    counters = record.counters
    left = counters.get("bytes", 0) - counters.get("done_bytes", 0)
    made = counters.get("made_bytes", 0) or counters.get("done_bytes", 0)  # of jobs of earlier versions
    if record.state.ended or not record.listed or made <= 0 or not counters.get("pixels"):
        return None
    return round(max(0.0, left * counters["pixels"] / made / 1e6), 3)


def _iso(moment: float | None) -> str | None:
    return None if moment is None else datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")
