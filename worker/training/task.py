"""How does a worker train a run? Take its lease, go on from its last state, publish, and tell how it went.

The message may come twice, late, or to another worker: the lease decides who trains, and whoever does goes on from
the state in the run's folder. A run is never begun twice.
"""

from __future__ import annotations

import logging
import secrets
import time
from contextlib import AbstractContextManager, suppress
from typing import Any

from vdsr.errors import VdsrError
from vdsr.training.run import Progress
from worker import health, stopping
from worker.errors import JobStopped, LeaseLost, NewerFormat, TransientError, WorkerStopping
from worker.jobs import State
from worker.renewal import Renewal
from worker.runtime import Runtime
from worker.training import require_training
from worker.training.ledger import RunLedger
from worker.training.publish import conclude, figures_json
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
    try:
        taken = lease.take()
        if taken is None:
            return
        lease.end(State.COMPLETED, result=_trained(runtime, lease, *taken))
    except JobStopped:
        log.info("run %s has ended; its state is saved", run_id)
    except LeaseLost:
        log.warning("run %s was taken over by another worker; leaving it", run_id)
    except TransientError as exc:
        log.warning("run %s pauses: %s", run_id, exc)
        with suppress(TransientError):  # the sweeper finds it either way, and queues it again in a while
            lease.release(blameless=True)
    except NewerFormat:
        with suppress(TransientError):
            lease.release(blameless=True)
        raise
    except WorkerStopping:
        log.info("asked to stop: run %s goes back with its state saved", run_id)
        _give_back(runtime, lease)
        stopping.leave()
    except SystemExit:  # the grace time is over, in one long step: another worker goes on from the last state
        _give_back(runtime, lease)
        raise
    except Exception as exc:
        if isinstance(exc, VdsrError):
            log.error("run %s fails: %s", run_id, exc)
        else:
            log.exception("run %s met a fault of this program", run_id)
        with suppress(LeaseLost, TransientError):
            lease.end(State.FAILED, error=str(exc) if isinstance(exc, VdsrError) else repr(exc))


def _give_back(runtime: Runtime, lease: RunLease) -> None:
    """Leave a run to others at once, if it is still ours."""
    with suppress(TransientError):
        if lease.release(blameless=True):
            runtime.queue.train(lease.run_id)


def _trained(runtime: Runtime, lease: RunLease, spec: str, leases: int) -> dict[str, Any]:
    """Train and publish; what there is to tell."""
    if leases > FRUITLESS:
        raise VdsrError(f"the run was begun {leases} times without a step done; the workers' logs tell why")
    run = Run.from_json(spec)
    require_training()
    with lease.kept():
        watch = Watch(lease.on_image, lease.on_progress, lease.guard)
        trained = do_run(run, runtime.settings, watch)
        lease.tell(phase="publishing" if run.publish else "done")
        lease.confirm()  # a run that was cancelled meanwhile promotes nothing
        return conclude(run, trained, runtime.settings, runtime.fleet)


class RunLease:
    """Ownership of one run, renewed by a thread of its own, which also tells how the run stands."""

    def __init__(self, ledger: RunLedger, run_id: str, seconds: float) -> None:
        self.ledger, self.run_id, self.seconds = ledger, run_id, seconds
        self.token = secrets.token_hex(8)
        self._facts: dict[str, Any] = {"phase": "starting"}
        self._renewed = time.monotonic()
        self._renewal = Renewal(self.confirm, min(TELL_S, seconds / 6))

    def take(self) -> tuple[str, int] | None:
        """Own the run, if it is free: its record, and how often it was taken in vain."""
        return self.ledger.lease(self.run_id, self.token, self.seconds)

    def kept(self) -> AbstractContextManager[None]:
        """Renew it for as long as the block runs."""
        return self._renewal.kept()

    def on_image(self, done: int, total: int) -> None:
        """So many training images are ready."""
        stopping.check()
        self.tell(phase="reading images", done=done, total=total)

    def on_progress(self, progress: Progress) -> None:
        """A step is done; what this raises has the run's state saved."""
        stopping.check()
        self.tell(phase="training", **facts(progress))

    def tell(self, **told: Any) -> None:
        """How the run stands; raises what the renewing thread has learnt: JobStopped or LeaseLost."""
        health.progress()
        self._facts = {**self._facts, **told}
        self._renewal.check()

    def confirm(self) -> None:
        """Make sure that the run is still ours: asked before anything is written over.

        Raises:
            JobStopped: the run was cancelled.
            LeaseLost: it is another worker's, or may be by now, as Redis has not answered for as long as a lease lasts.
        """
        try:
            self._beat()
        except TransientError as exc:
            if time.monotonic() - self._renewed > self.seconds:
                raise LeaseLost(self.run_id) from exc

    def guard(self) -> None:
        """The same before a state is saved, which a run that was cancelled does too."""
        with suppress(JobStopped):
            self.confirm()

    def release(self, *, blameless: bool) -> bool:
        """Give the run back; False if it was not ours any more."""
        return self.ledger.release(self.run_id, self.token, blameless=blameless)

    def end(self, state: State, *, error: str = "", result: dict[str, Any] | None = None) -> None:
        """The run is over."""
        self.ledger.end(self.run_id, state, token=self.token, error=error, result=result)

    def _beat(self) -> None:
        told = self._facts
        self.ledger.beat(self.run_id, self.token, self.seconds, told.get("step", 0), told)
        self._renewed = time.monotonic()


def facts(progress: Progress) -> dict[str, Any]:
    """Progress as plain JSON, for the ledger and for people's screens."""
    return {
        "step": progress.step,
        "steps": progress.steps,
        "loss": progress.loss,
        "learning_rate": progress.learning_rate,
        "seconds": round(progress.seconds, 1),
        "eta_s": progress.eta_s,
        "psnr_y": figures_json(progress.psnr_y),
    }
