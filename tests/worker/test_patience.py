"""A storage that is away is waited for; one object that fails while others work is not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from worker.errors import AccessDenied, JobStopped, LeaseLost, StorageUnavailable
from worker.patience import Patience


class Flaky:
    """Fails so many times before it gives its key back."""

    def __init__(self, failures: float, error: Exception | None = None) -> None:
        self.failures, self.calls = failures, 0
        self.error = error or StorageUnavailable("away")

    def read(self, key: str) -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error
        return key


def test_what_comes_back_is_waited_for() -> None:
    storage = Flaky(2)

    assert Patience()(storage.read, "a.png") == "a.png"
    assert storage.calls == 3


def test_pauses_grow_and_the_patience_ends() -> None:
    storage, began = Flaky(float("inf")), time.monotonic()

    with pytest.raises(StorageUnavailable, match="away"):
        Patience(patience_s=1)(storage.read, "a.png")

    assert 2 <= storage.calls <= 4  # after 0, 0.5 to 1, and 1 to 2 s more
    assert time.monotonic() - began > 1


def test_one_that_fails_while_others_work_is_given_up_after_three_attempts() -> None:
    patience, storage, others = Patience(alone_s=1), Flaky(float("inf")), Flaky(0)
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(0.05):
            patience(others.read, "b.png")

    thread = threading.Thread(target=work)
    thread.start()
    try:
        with pytest.raises(StorageUnavailable):
            patience(storage.read, "a.png")
    finally:
        ended.set()
        thread.join()

    assert 3 <= storage.calls <= 5


def test_others_that_worked_when_the_outage_began_do_not_make_it_one_objects_own() -> None:
    patience, storage = Patience(alone_s=0), Flaky(4)

    def read(key: str) -> str:
        if storage.calls == 0:
            patience(Flaky(0).read, "was under way")
        return storage.read(key)

    assert patience(read, "a.png") == "a.png"


def test_what_repeating_cannot_mend_is_not_repeated() -> None:
    storage = Flaky(1, AccessDenied("no"))

    with pytest.raises(AccessDenied):
        Patience()(storage.read, "a.png")

    assert storage.calls == 1


def test_a_job_that_has_stopped_is_not_waited_for_and_its_image_has_an_outcome() -> None:
    patience = Patience(_raising(JobStopped("j")))

    with pytest.raises(StorageUnavailable):
        patience(Flaky(1).read, "a.png")
    with pytest.raises(StorageUnavailable):  # nor by the other threads
        patience(Flaky(1).read, "b.png")


def test_a_lost_lease_rises_out_of_the_wait() -> None:
    with pytest.raises(LeaseLost):
        Patience(_raising(LeaseLost("j", 0)))(Flaky(1).read, "a.png")


def test_a_close_ends_the_waits_of_all_threads_at_once() -> None:
    patience, failed = Patience(), []

    def read() -> None:
        try:
            patience(Flaky(float("inf")).read, "a.png")
        except StorageUnavailable:
            failed.append(1)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    patience.close()
    for thread in threads:
        thread.join(30)

    assert len(failed) == 4


def _raising(error: Exception) -> Callable[[], None]:
    def check() -> None:
        raise error

    return check
