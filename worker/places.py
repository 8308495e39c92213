"""Which job's record does a user mean, by its id or by the destination where it lies?"""

from __future__ import annotations

from worker.errors import NotFound
from worker.jobs import JOB_ID, State
from worker.ledger import Ledger
from worker.parts import Parts, job_ids
from worker.settings import Settings
from worker.uris import resolve


def find_parts(job: str, chosen: str | None, settings: Settings) -> tuple[Parts, State | None]:
    """The record of a job, to be read, and the state in which it ended, if it has; it may have been moved or copied.

    Args:
        job: an id, which Redis must know, or a destination.
        chosen: the id at a destination that has several; None is the last.

    Raises:
        NotFound: no such job, or no record there.
    """
    if JOB_ID.fullmatch(job):
        destination, chosen = Ledger(settings.redis_url).record(job).job.destination, job
    else:
        destination = resolve(job, settings).uri
    if chosen is None:
        known = job_ids(destination, settings)
        if not known:
            raise NotFound(f"there is no record of a job at {destination}; give the destination of a job, or its id")
        chosen = known[-1]
    return Parts.at(destination, chosen, settings, moved=True)
