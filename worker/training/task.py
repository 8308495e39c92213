"""How does a worker train a run? Take its lease, go on from its last state, publish, and tell how it went.

The message may come twice, late, or to another worker: the lease decides who trains, and whoever does goes on from
the state in the run's folder. A run is never begun twice.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from vdsr.errors import VdsrError
from vdsr.training.run import Progress
from worker.errors import JobStopped, LeaseLost, TransientError
from worker.jobs import State
from worker.runtime import Runtime
from worker.training import require_training
from worker.training.ledger import RunLedger
from worker.training.publish import conclude
from worker.training.runs import Run
from worker.training.work import Watch, do_run

FRUITLESS = 5
"""A run that was taken this often without a step of progress is given up: it kills its worker."""
TELL_S = 1.0
"""Between two reports of how the run stands."""

log = logging.getLogger(__name__)


def do_training(runtime: Runtime, run_id: str) -> None:
    """Do what is left of a run; nothing if it has ended or another worker has it."""
    lease = RunLease(runtime.runs, run_id, runtime.settings.lease_s)
    taken = lease.take()
    if taken is None:
        return
    run, leases = taken
    try:
        require_training()
        _refuse_fruitless(leases)
        with lease.kept():
            trained = do_run(run, runtime.settings, Watch(lease.on_image, lease.on_progress))
            lease.tell(phase="publishing" if run.publish else "writing the report")
            result = conclude(run, trained, runtime.settings, runtime.fleet)
        lease.end(State.COMPLETED, result=result)
    except JobStopped:
        log.info("run %s has ended; its state is saved", run_id)
    except LeaseLost:
        log.warning("run %s was taken over by another worker; leaving it", run_id)
    except TransientError as exc:
        log.warning("run %s pauses: %s", run_id, exc)
        lease.release()  # the sweeper queues it again in a while
    except VdsrError as exc:
        log.error("run %s fails: %s", run_id, exc)
        with suppress(LeaseLost):
            lease.end(State.FAILED, error=str(exc))
    except SystemExit:  # asked to stop: another worker goes on from the last state
        with suppress(TransientError):
            if lease.release():
                runtime.queue.train(run_id)
        raise


def _refuse_fruitless(leases: int) -> None:
    if leases > FRUITLESS:
        raise VdsrError(f"the run was begun {leases} times without a step done; the workers' logs tell why")


class RunLease:
    """Ownership of one run, renewed by a thread of its own, which also tells how the run stands."""

    def __init__(self, ledger: RunLedger, run_id: str, seconds: float) -> None:
        self.ledger, self.run_id, self.seconds = ledger, run_id, seconds
        self.token = secrets.token_hex(8)
        self._facts: dict[str, Any] = {"phase": "starting"}
        self._ended = threading.Event()
        self._verdict: JobStopped | LeaseLost | None = None

    def take(self) -> tuple[Run, int] | None:
        """Own the run, if it is free."""
        return self.ledger.lease(self.run_id, self.token, self.seconds)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Renew from a thread: a step may take longer than a lease."""
        thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def on_image(self, done: int, total: int) -> None:
        """So many training images are ready."""
        self.tell(phase="reading images", done=done, total=total)

    def on_progress(self, progress: Progress) -> None:
        """A step is done."""
        self.tell(phase="training", **facts(progress))

    def tell(self, **told: Any) -> None:
        """How the run stands; raises what the renewing thread has learnt: JobStopped or LeaseLost."""
        self._facts = {**self._facts, **told}
        if self._verdict is not None:
            raise self._verdict

    def release(self) -> bool:
        """Give the run back; False if it was not ours any more."""
        return self.ledger.release(self.run_id, self.token)

    def end(self, state: State, *, error: str = "", result: dict[str, Any] | None = None) -> None:
        """The run is over."""
        self.ledger.end(self.run_id, state, token=self.token, error=error, result=result)

    def _renew(self) -> None:
        while not self._ended.wait(min(TELL_S, self.seconds / 6)):
            told = self._facts
            try:
                self.ledger.beat(self.run_id, self.token, self.seconds, told.get("step", 0), told)
            except (JobStopped, LeaseLost) as exc:
                self._verdict = exc
                return
            except TransientError as exc:
                log.warning("cannot renew the lease of run %s: %s", self.run_id, exc)


def facts(progress: Progress) -> dict[str, Any]:
    """Progress as plain JSON, for the ledger and for people's screens."""
    return {
        "step": progress.step,
        "steps": progress.steps,
        "loss": progress.loss,
        "learning_rate": progress.learning_rate,
        "seconds": round(progress.seconds, 1),
        "eta_s": progress.eta_s,
        "psnr_y": {str(scale): {"bicubic": b, "vdsr": v} for scale, (b, v) in progress.psnr_y.items()},
    }
