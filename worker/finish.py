"""When is a job over? When every chunk is committed, or it was stopped; its job.json then says how it ended."""

from __future__ import annotations

import dataclasses
import logging

from worker.errors import StorageError
from worker.jobs import State
from worker.ledger import Ledger
from worker.parts import Parts
from worker.settings import Settings
from worker.summary import summarise

log = logging.getLogger(__name__)


def finish_job(ledger: Ledger, job_id: str, settings: Settings) -> None:
    """Write the totals, then close the job; nothing if chunks of it are still out."""
    record = ledger.record(job_id)
    if not record.state.ended and not (record.listed and record.chunks_done == record.planned):
        return
    # First the file, then the state: whoever waits for the state finds the file.
    if not record.state.ended:
        record = dataclasses.replace(record, state=State.COMPLETED, finished=record.now)
    try:
        Parts(record.job, settings).write_job({"ended": summarise(record)})
    except StorageError as exc:  # the ledger still knows the totals, and the job must end
        log.error("cannot write the record of job %s: %s", job_id, exc)
    ledger.finish(job_id)
