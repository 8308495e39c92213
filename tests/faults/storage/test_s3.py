"""Jobs on an S3 that fails: through a proxy that answers 500 and 503, resets, cuts bodies, denies and forgets.

What helps by itself is repeated until it does; what does not, costs its image alone and has a code; what would cost
every image ends the job and says why.
"""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from helpers import Service, wait_until
from PIL import Image
from proxy import Proxy, Rule, after, lost_answer, refusal, reset, stalled, truncated
from servers import S3Server

from worker.parts import Parts
from worker.storage.s3 import S3Storage, clients

pytestmark = [pytest.mark.redis, pytest.mark.s3]

SLOW_DOWN = refusal(503, "SlowDown")


def fill(storage: S3Storage, count: int) -> list[str]:
    """So many small pictures below "in/"; their keys there."""
    keys = [f"{n % 5}/{n:04d}.png" for n in range(count)]
    for n, key in enumerate(keys):
        storage.write(f"in/{key}", picture(n))
    return keys


def picture(seed: int, size: tuple[int, int] = (8, 6)) -> bytes:
    buffer = BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0]), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def submit(service: Service, bucket: str, **options: object) -> str:
    return service.submit(f"s3://{bucket}/in", f"s3://{bucket}/out", score=False, **options)


def check_record(service: Service, job_id: str, keys: list[str]) -> None:
    """Every image has exactly one row in the record, and every row of a done one its whole output."""
    job = service.client.ledger.record(job_id).job
    told = Counter(row.key for _, rows in Parts(job, service.settings).all_results() for row in rows)
    assert told == Counter(keys)
    rows = service.rows(job_id)
    target = S3Storage(job.destination.removeprefix("s3://").partition("/")[0], "out", endpoint_url=_endpoint(service))
    for row in rows.values():
        if row.outcome == "done":
            assert Image.open(BytesIO(target.read(row.output))).size == (row.width, row.height)
        else:
            assert not target.exists(row.output)


def _endpoint(service: Service) -> str:
    assert service.settings.s3_endpoint_url is not None
    return service.settings.s3_endpoint_url


@pytest.mark.parametrize("operation", ["GET", "PUT", "LIST"])
def test_what_passes_in_a_moment_costs_no_image(
    service: Service, proxy: Proxy, bucket: str, outside: S3Storage, operation: str
) -> None:
    keys = fill(outside, 20)
    where = {"GET": "^in/", "PUT": "^out/(?!.vdsr)", "LIST": ""}[operation]
    faults = [refusal(500, "InternalError"), SLOW_DOWN, reset, truncated if operation == "GET" else lost_answer]
    rules = [Rule(operation, where, fault, skip=2 * n, times=2) for n, fault in enumerate(faults)]

    with proxy.spoiling(*rules):
        job_id = submit(service, bucket)
        summary = service.wait(job_id)

    assert summary["images"] == {"total": 20, "done": 20, "failed": 0, "skipped": 0, "ignored": 0}
    assert sum(rule.spoilt for rule in rules) >= (2 if operation == "LIST" else 8)
    check_record(service, job_id, keys)


def test_a_record_whose_answers_are_lost_is_written_once(
    service: Service, proxy: Proxy, bucket: str, outside: S3Storage
) -> None:
    keys = fill(outside, 20)

    with proxy.spoiling(Rule("PUT", r"^out/\.vdsr/.*jsonl$", lost_answer, times=4)):
        job_id = submit(service, bucket)
        summary = service.wait(job_id)

    assert summary["images"]["done"] == 20
    check_record(service, job_id, keys)


@pytest.mark.parametrize(
    ("operation", "where", "status", "code", "outcome"),
    [
        ("GET", "^in/1/0006.png$", 403, "AccessDenied", "access_denied"),
        ("PUT", "^out/1/0006.png$", 403, "AccessDenied", "access_denied"),
        ("GET", "^in/1/0006.png$", 403, "InvalidObjectState", "storage_error"),
        ("GET", "^in/1/0006.png$", 403, "SignatureDoesNotMatch", "access_denied"),
        ("PUT", "^out/1/0006.png$", 403, "QuotaExceeded", "disk_full"),
        ("GET", "^in/1/0006.png$", 404, "NoSuchKey", "not_found"),
    ],
)
def test_what_one_key_is_refused_costs_that_key_only_and_is_not_repeated(
    service: Service,
    proxy: Proxy,
    bucket: str,
    outside: S3Storage,
    operation: str,
    where: str,
    status: int,
    code: str,
    outcome: str,
) -> None:
    keys = fill(outside, 12)
    rule = Rule(operation, where, refusal(status, code), times=None)

    with proxy.spoiling(rule):
        job_id = submit(service, bucket)
        summary = service.wait(job_id)

    assert (summary["state"], summary["images"]["done"], summary["failures"]) == ("completed", 11, {outcome: 1})
    assert rule.spoilt == 1
    assert service.rows(job_id)["1/0006.png"].code == outcome
    check_record(service, job_id, keys)


def test_a_retry_does_what_was_denied_once_it_is_allowed(
    service: Service, proxy: Proxy, bucket: str, outside: S3Storage
) -> None:
    fill(outside, 6)
    with proxy.spoiling(Rule("GET", "^in/1/0001.png$", refusal(403, "AccessDenied"), times=None)):
        job_id = submit(service, bucket)
        assert service.wait(job_id)["failures"] == {"access_denied": 1}

    assert service.client.retry(job_id) == 1

    assert service.wait(job_id)["images"] == {"total": 6, "done": 6, "failed": 0, "skipped": 0, "ignored": 0}


def test_an_object_that_changes_after_it_was_listed_is_done_as_it_is_and_says_so(
    service: Service, proxy: Proxy, bucket: str, outside: S3Storage
) -> None:
    keys = fill(outside, 6)
    larger = picture(99, size=(20, 10))

    with proxy.spoiling(Rule("GET", "^in/1/0001.png$", after(lambda: outside.write("in/1/0001.png", larger)))):
        job_id = submit(service, bucket)
        service.wait(job_id)

    rows = service.rows(job_id)
    assert (rows["1/0001.png"].width, rows["1/0001.png"].height) == (40, 20)
    assert "changed after it was listed" in rows["1/0001.png"].notes[-1]
    assert [key for key, row in rows.items() if row.notes] == ["1/0001.png"]
    check_record(service, job_id, keys)


def test_an_object_that_goes_after_it_was_listed_is_not_found(
    service: Service, proxy: Proxy, bucket: str, outside: S3Storage, s3_server: S3Server
) -> None:
    keys = fill(outside, 6)

    def delete() -> None:
        clients.get(s3_server.endpoint_url, None).delete_object(Bucket=bucket, Key="in/1/0001.png")

    with proxy.spoiling(Rule("GET", "^in/1/0001.png$", after(delete))):
        job_id = submit(service, bucket)
        summary = service.wait(job_id)

    assert (summary["images"]["done"], summary["failures"]) == (5, {"not_found": 1})
    check_record(service, job_id, keys)


def test_a_source_bucket_that_goes_in_mid_job_ends_it_with_the_reason(
    service: Service, proxy: Proxy, doomed_bucket: str, s3_server: S3Server, tmp_path: Path
) -> None:
    source = S3Storage(doomed_bucket, endpoint_url=s3_server.endpoint_url)
    fill(source, 60)

    def delete() -> None:
        clients.get(s3_server.endpoint_url, None).delete_bucket(Bucket=doomed_bucket)

    with proxy.spoiling(Rule("GET", "^in/", after(delete), skip=10)):
        job_id = service.submit(f"s3://{doomed_bucket}/in", tmp_path / "out", score=False)
        summary = service.wait(job_id)

    assert summary["state"] == "failed"
    assert "NoSuchBucket" in summary["error"]
    assert "check the bucket's name" in summary["error"]
    _ended_with_what_is_done(service, job_id, summary)


def test_a_destination_bucket_that_goes_in_mid_job_ends_it_with_the_reason(
    service: Service, proxy: Proxy, bucket: str, outside: S3Storage, doomed_bucket: str, s3_server: S3Server
) -> None:
    fill(outside, 60)

    def delete() -> None:
        clients.get(s3_server.endpoint_url, None).delete_bucket(Bucket=doomed_bucket)

    with proxy.spoiling(Rule("PUT", "^out/[0-9]", after(delete), skip=10)):
        job_id = service.submit(f"s3://{bucket}/in", f"s3://{doomed_bucket}/out", score=False)
        summary = service.wait(job_id)

    assert summary["state"] == "failed"
    assert re.search(f"s3://{doomed_bucket}/out.*answers NoSuch(Bucket|Key)", summary["error"])  # SeaweedFS says both
    wait_until(lambda: not service.client.ledger.is_open(job_id), 120)


def _ended_with_what_is_done(service: Service, job_id: str, summary: dict) -> None:
    """The rows at the destination and the counters in the ledger say the same, and so do the files."""
    wait_until(lambda: not service.client.ledger.is_open(job_id), 120)
    job = service.client.ledger.record(job_id).job
    done = [row for row in service.rows(job_id).values() if row.outcome == "done"]
    assert len(done) == service.client.ledger.record(job_id).counters["done"]
    assert all((Path(job.destination) / row.output).is_file() for row in done)


@pytest.mark.parametrize("code", ["ExpiredToken", "InvalidAccessKeyId"])
def test_credentials_that_expire_end_the_job_with_the_remedy(
    service: Service, proxy: Proxy, bucket: str, outside: S3Storage, tmp_path: Path, code: str
) -> None:
    fill(outside, 60)

    with proxy.spoiling(Rule("GET", "^in/", refusal(400, code), skip=10, times=None)):
        job_id = service.submit(f"s3://{bucket}/in", tmp_path / "out", score=False)
        summary = service.wait(job_id)

    assert summary["state"] == "failed"
    assert code in summary["error"]
    assert "AWS_ACCESS_KEY_ID" in summary["error"]
    _ended_with_what_is_done(service, job_id, summary)


def test_credentials_that_are_rotated_in_their_file_are_taken_up(
    service: Service, proxy: Proxy, bucket: str, outside: S3Storage, credentials_file: Path
) -> None:
    keys = fill(outside, 40)
    good = credentials_file.read_text()
    wrong = good.replace("aws_access_key_id = ", "aws_access_key_id = old-")

    def expire() -> None:
        credentials_file.write_text(good)  # what the workers' clients hold is older

    credentials_file.write_text(wrong)
    try:
        with proxy.spoiling(
            Rule("GET", "^in/", after(expire), skip=5),
            Rule("GET", "^in/", refusal(400, "ExpiredToken"), skip=6, times=2),
        ):
            job_id = submit(service, bucket)
            summary = service.wait(job_id)
    finally:
        credentials_file.write_text(good)

    assert summary["images"]["done"] == 40
    check_record(service, job_id, keys)


def during(seconds: float, begins: Callable[[], bool], fault: Rule) -> threading.Thread:
    """An outage: from when something is so, for so long, the rule spoils everything."""
    assert fault.times == 0

    def run() -> None:
        wait_until(begins, 120)
        fault.times = None
        time.sleep(seconds)
        fault.times = 0

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def test_a_short_outage_costs_time_and_no_image(
    service: Service, proxy: Proxy, bucket: str, outside: S3Storage
) -> None:
    keys = fill(outside, 60)
    outage = Rule("", "^in/.|^out/[0-9]", reset, times=0)

    with proxy.spoiling(outage):
        job_id = submit(service, bucket)
        thread = during(5, lambda: outage.seen >= 20, outage)
        summary = service.wait(job_id)
        thread.join()

    assert outage.spoilt > 20
    assert summary["failures"] == {}
    check_record(service, job_id, keys)


# --- long ones ------------------------------------------------------------------------------------------------------


@pytest.mark.faults
def test_an_outage_of_everything_costs_time_and_no_image(
    service: Service, proxy: Proxy, bucket: str, outside: S3Storage
) -> None:
    keys = fill(outside, 400)
    outage = Rule("", "", reset, times=0)

    with proxy.spoiling(outage):
        job_id = submit(service, bucket)
        thread = during(40, lambda: outage.seen >= 100, outage)
        summary = service.wait(job_id)
        thread.join()

    assert summary["failures"] == {}
    assert summary["images"]["done"] == 400
    check_record(service, job_id, keys)


@pytest.mark.faults
@pytest.mark.parametrize("fault", [SLOW_DOWN, reset], ids=["503", "resets"])
def test_an_outage_that_meets_the_images_costs_time_and_none_of_them(
    service: Service, proxy: Proxy, bucket: str, outside: S3Storage, fault: Callable
) -> None:
    keys = fill(outside, 400)
    # Not the record: a chunk whose manifest cannot be read only pauses, and would keep its images from the outage.
    outage = Rule("", "^in/.|^out/[0-9]", fault, times=0)

    with proxy.spoiling(outage):
        job_id = submit(service, bucket)
        thread = during(40, lambda: outage.seen >= 30, outage)
        summary = service.wait(job_id)
        thread.join()

    assert outage.spoilt > 50
    assert summary["failures"] == {}
    assert summary["images"] == {"total": 400, "done": 400, "failed": 0, "skipped": 0, "ignored": 0}
    check_record(service, job_id, keys)


@pytest.mark.faults
def test_an_object_that_always_fails_is_given_up_while_the_others_are_done(
    service: Service, proxy: Proxy, bucket: str, outside: S3Storage
) -> None:
    keys = fill(outside, 100)

    with proxy.spoiling(Rule("GET", "^in/[123]/000[123].png$", refusal(500, "InternalError"), times=None)):
        job_id = submit(service, bucket)
        summary = service.wait(job_id)

    assert (summary["images"]["done"], summary["failures"]) == (97, {"storage_unavailable": 3})
    check_record(service, job_id, keys)


@pytest.mark.faults
def test_a_server_that_falls_silent_is_asked_again_after_its_timeout(
    service: Service, proxy: Proxy, bucket: str, outside: S3Storage
) -> None:
    keys = fill(outside, 30)

    with proxy.spoiling(
        Rule("GET", "^in/", stalled(300), skip=5, times=2), Rule("PUT", "^out/[0-9]", stalled(300), skip=3, times=2)
    ):
        job_id = submit(service, bucket)
        summary = service.wait(job_id)

    assert summary["images"]["done"] == 30
    check_record(service, job_id, keys)


@pytest.mark.faults
def test_a_third_of_all_requests_failing_in_every_way_loses_and_doubles_nothing(
    service: Service, proxy: Proxy, bucket: str, outside: S3Storage
) -> None:
    keys = fill(outside, 800)
    faults = [refusal(500, "InternalError"), SLOW_DOWN, reset, truncated, lost_answer]
    rules = [Rule("", "", fault, share=0.08, times=None) for fault in faults]

    with proxy.spoiling(*rules):
        job_id = submit(service, bucket)
        summary = service.wait(job_id, timeout_s=1200)

    assert all(rule.spoilt > 50 for rule in rules)
    assert summary["failures"] == {}
    assert summary["images"] == {"total": 800, "done": 800, "failed": 0, "skipped": 0, "ignored": 0}
    check_record(service, job_id, keys)


@pytest.mark.faults
def test_a_cancel_is_heard_while_the_storage_is_away(
    service: Service, proxy: Proxy, bucket: str, outside: S3Storage
) -> None:
    fill(outside, 60)
    outage = Rule("", "^in/|^out/[0-9]", SLOW_DOWN, skip=40, times=None)

    with proxy.spoiling(outage):
        job_id = submit(service, bucket)
        wait_until(lambda: outage.spoilt > 40, 120)
        began = time.monotonic()
        service.client.cancel(job_id)
        wait_until(lambda: not service.client.ledger.is_open(job_id), 120)

    assert time.monotonic() - began < 90  # botocore's own repetitions, which cannot be interrupted, and not PATIENCE_S
    assert service.wait(job_id)["state"] == "cancelled"
