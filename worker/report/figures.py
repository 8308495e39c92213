"""What do a job's outcomes say together? Counts, distributions and extremes, in one pass and little memory.

Only failures are held, as a later attempt may take one back; of all others what is kept does not grow with the job.
"""

from __future__ import annotations

import heapq
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from worker.jobs import Outcome

EXTREMES = 10
"""Best and worst images that are kept."""
EXAMPLES = 5
"""Failures of a code that are shown with their message."""
SLOTS = 240
"""Most slots of the timeline."""
NOTES = 20


@dataclass
class Distribution:
    """Figures in dB, to a hundredth."""

    counts: Counter[int] = field(default_factory=Counter)
    """By hundredths of a dB."""
    total: float = 0.0

    def add(self, value: float) -> None:
        """One more."""
        self.counts[round(100 * value)] += 1
        self.total += value

    @property
    def n(self) -> int:
        """How many."""
        return self.counts.total()

    @property
    def mean(self) -> float | None:
        """None of nothing."""
        return self.total / self.n if self.n else None

    def quantile(self, share: float) -> float | None:
        """The smallest value that at least this share does not exceed; None of nothing."""
        seen, wanted = 0, share * self.n
        for value in sorted(self.counts):
            seen += self.counts[value]
            if seen >= wanted:
                return value / 100
        return None

    def bins(self, width: float) -> list[tuple[float, int]]:
        """(lower edge, count) of equal bins, without a gap from the first to the last that has any."""
        step = round(100 * width)
        found: Counter[int] = Counter()
        for value, count in self.counts.items():
            found[value // step] += count
        return [(k * width, found[k]) for k in range(min(found), max(found) + 1)] if found else []


@dataclass
class Timeline:
    """Images a slot of time, by worker and model; slots grow so that there are never more than SLOTS."""

    slot_s: int = 1
    first: float | None = None
    """Unix time of the first slot."""
    rows: defaultdict[tuple[str, str], Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    slots: int = 0
    """How many there are: kept, as counting them anew for each image takes longer with each worker."""

    def add(self, worker: str, model: str, moment: float) -> None:
        """An image was finished."""
        if self.first is None or moment < self.first:
            self._begin(moment)
        assert self.first is not None
        slot = int((moment - self.first) // self.slot_s)
        self.rows[worker, model][slot] += 1
        self.slots = max(self.slots, slot + 1)
        while self.slots > SLOTS:
            self.slot_s *= 2
            self._regroup(lambda slot: slot // 2)

    def _begin(self, moment: float) -> None:
        """Put the first slot earlier, by whole slots."""
        if self.first is None:
            self.first = moment
            return
        earlier = int(-((moment - self.first) // self.slot_s))
        self.first -= earlier * self.slot_s
        self._regroup(lambda slot: slot + earlier)

    def _regroup(self, place: Callable[[int], int]) -> None:
        for key, counts in self.rows.items():
            moved: Counter[int] = Counter()
            for slot, n in counts.items():
                moved[place(slot)] += n
            self.rows[key] = moved
        self.slots = 1 + max((max(counts) for counts in self.rows.values()), default=-1)


@dataclass
class Figures:
    """Everything that a report says of the images."""

    outcomes: Counter[str] = field(default_factory=Counter)
    pixels: int = 0
    """Of the outputs."""
    psnr: dict[str, Distribution] = field(
        default_factory=lambda: {name: Distribution() for name in ("bicubic", "vdsr", "gain")}
    )
    exact: int = 0
    """Images whose PSNR is infinite."""
    lr_consistency: Distribution = field(default_factory=Distribution)
    """Of outputs that are shrunk again, against their inputs, where that is finite."""
    least_consistent: Outcome | None = None
    without: Counter[str] = field(default_factory=Counter)
    """Images without a PSNR, by reason."""
    best: list[Outcome] = field(default_factory=list)
    """By gain over bicubic, the largest first; without those in `worst`, of a small job."""
    worst: list[Outcome] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[Outcome]] = field(default_factory=dict)
    """Of failures, by code."""
    notes: Counter[str] = field(default_factory=Counter)
    """With N for each number."""
    seconds: Counter[str] = field(default_factory=Counter)
    """By stage."""
    timeline: Timeline = field(default_factory=Timeline)
    models: Counter[str] = field(default_factory=Counter)
    """Finished images by SHA-256 of the weights."""
    began: float | None = None
    """Unix time at which the first attempt began."""
    ended: float | None = None


def gather(rows: Iterable[Outcome], on_row: Callable[[Outcome], None] = lambda row: None) -> Figures:
    """The figures of a job.

    Args:
        rows: of all its parts, in order.
        on_row: called with each final outcome: failures, which a later attempt may take back, come at the end.
    """
    figures = Figures()
    failed: dict[str, Outcome] = {}
    for row in rows:
        if row.outcome == "failed":
            failed[row.key] = row
            continue
        failed.pop(row.key, None)
        _add(figures, row)
        on_row(row)
    for row in failed.values():
        _add(figures, row)
        on_row(row)
    figures.worst.sort(key=_gain)
    shown = {row.key for row in figures.worst}
    figures.best = sorted((row for row in figures.best if row.key not in shown), key=_gain, reverse=True)
    return figures


def _add(figures: Figures, row: Outcome) -> None:
    figures.outcomes[row.outcome] += 1
    if row.finished is not None:
        spent = sum(seconds for name, seconds in row.seconds.items() if name != "network")  # a part of other stages
        figures.began = min(figures.began or row.finished, row.finished - spent)
        figures.ended = max(figures.ended or row.finished, row.finished)
    if row.outcome == "failed":
        code = row.code or "failed"
        figures.failures[code] += 1
        examples = figures.examples.setdefault(code, [])
        if len(examples) < EXAMPLES:
            examples.append(row)
    if row.outcome != "done":
        return
    figures.pixels += (row.width or 0) * (row.height or 0)
    figures.seconds.update(row.seconds)
    figures.models[row.model or "?"] += 1
    if row.finished is not None:
        figures.timeline.add(row.worker or "?", row.model or "?", row.finished)
    for note in row.notes:
        _add_note(figures.notes, re.sub(r"\d+", "N", note))
    if row.psnr is not None:
        _add_psnr(figures, row, row.psnr)


def _add_psnr(figures: Figures, row: Outcome, psnr: dict[str, float | str | None]) -> None:
    agrees = psnr.get("lr_consistency")  # which earlier versions did not measure
    if isinstance(agrees, int | float):
        figures.lr_consistency.add(float(agrees))
        if figures.least_consistent is None or agrees < (figures.least_consistent.psnr or {})["lr_consistency"]:
            figures.least_consistent = row
    values = {name: psnr[name] for name in figures.psnr}
    if values["vdsr"] == "inf":
        figures.exact += 1
    elif all(isinstance(value, int | float) for value in values.values()):
        for name, value in values.items():
            figures.psnr[name].add(float(value or 0))
        _keep(figures.best, row, _gain)
        _keep(figures.worst, row, lambda other: -_gain(other))
    else:
        _add_note(figures.without, str(psnr.get("reason") or "bicubic is exact"))


def _add_note(notes: Counter[str], note: str) -> None:
    """Count, but not without bound: messages may hold names."""
    notes[note if note in notes or len(notes) < NOTES else "others"] += 1


def _keep(best: list[Outcome], row: Outcome, measure: Callable[[Outcome], float]) -> None:
    if len(best) < EXTREMES or measure(row) > measure(best[-1]):
        best.append(row)
        best[:] = heapq.nlargest(EXTREMES, best, key=measure)


def _gain(row: Outcome) -> float:
    return float((row.psnr or {})["gain"])
