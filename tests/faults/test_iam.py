"""Are the S3 policies in deploy/iam enough, and no more? Held against every request of real jobs and a real training.

SeaweedFS does not enforce them here: each request is recorded on its way, and judged as IAM judges it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import servers
from helpers import make_photos, published, vdsr
from proxy import Proxy, proxy_before
from rig import rig

from worker.registry import PRODUCTION, Registry
from worker.settings import load_settings
from worker.storage import Storage
from worker.uris import open_storage

pytestmark = [pytest.mark.redis, pytest.mark.s3]

POLICIES = Path(__file__).parents[2] / "deploy" / "iam"
ACTIONS = {"LIST": "s3:ListBucket", "GET": "s3:GetObject", "HEAD": "s3:GetObject", "PUT": "s3:PutObject"}
"""What a request needs; for a DELETE, a POST or anything else there is none, and it would stand out."""


def grants(role: str, bucket: str) -> list[tuple[str, str]]:
    """What a policy allows, (action, resource), with this bucket and prefixes named for what they are."""
    text = re.sub(r"[A-Z]+-BUCKET", bucket, (POLICIES / f"{role}.json").read_text())
    text = re.sub(r"([A-Z]+)-PREFIX", lambda found: found[1].lower(), text)
    statements: list[dict[str, Any]] = json.loads(text)["Statement"]
    assert all(statement["Effect"] == "Allow" for statement in statements)
    return [(statement["Action"], resource) for statement in statements for resource in statement["Resource"]]


def is_allowed(request: tuple[str, str, str], grant: tuple[str, str]) -> bool:
    operation, bucket, key = request
    action, resource = grant
    pattern = re.escape(resource).replace(r"\*", ".*")
    wanted = f"arn:aws:s3:::{bucket}" + (f"/{key}" if operation != "LIST" else "")
    return ACTIONS.get(operation) == action and re.fullmatch(pattern, wanted, re.DOTALL) is not None


def check(role: str, bucket: str, requests: Iterable[tuple[str, str, str]]) -> None:
    allowed, seen = grants(role, bucket), set(requests)
    refused = sorted(request for request in seen if not any(is_allowed(request, grant) for grant in allowed))
    unused = [grant for grant in allowed if not any(is_allowed(request, grant) for request in seen)]
    assert refused == [], f"{role} needs more"
    assert unused == [], f"{role} may do more than it needs"


def upload(folder: Path, target: Storage) -> None:
    for path in folder.rglob("*.*"):
        target.write(str(path.relative_to(folder)), path.read_bytes())


def through(proxy: Proxy, server: servers.S3Server) -> servers.S3Server:
    return dataclasses.replace(server, endpoint_url=proxy.url)


@pytest.mark.faults
def test_a_worker_and_a_client_need_what_their_policies_allow_and_no_more(
    bucket: str, s3_server: servers.S3Server, tmp_path: Path
) -> None:
    photos = make_photos(tmp_path / "photos", 4)
    (photos / "bad.png").write_bytes(b"no picture")
    models = {"registry": f"s3://{bucket}/models"}
    with (
        proxy_before(s3_server.endpoint_url) as of_workers,
        proxy_before(s3_server.endpoint_url) as of_clients,
        rig(["one"], s3=through(of_workers, s3_server), **models) as fleet,
    ):
        admin = load_settings(fleet.service.environment | {"VDSR_S3_ENDPOINT_URL": s3_server.endpoint_url})
        upload(photos, open_storage(f"s3://{bucket}/source", admin))
        registry = Registry(admin)
        registry.promote(published(registry, "ours"), over=registry.alias(PRODUCTION))
        of_workers.seen.clear()
        state = {**os.environ, **fleet.service.environment, "VDSR_S3_ENDPOINT_URL": of_clients.url}
        state["VDSR_REDIS_URL"] = fleet.redis.url
        source, target = f"s3://{bucket}/source", f"s3://{bucket}/destination"
        submitted = vdsr(state, "submit", source, target, "--wait")
        (job_id,) = fleet.service.client.ledger.job_ids()
        told = [
            vdsr(state, "submit", source, target, "--dry-run"),
            vdsr(state, "status", job_id, "--failed"),
            vdsr(state, "retry", job_id),
            vdsr(state, "wait", job_id),
            vdsr(state, "report", target, "-o", str(tmp_path / "report.html")),
        ]
    assert submitted.returncode == 3, submitted.stderr
    assert [each.returncode for each in told] == [0, 0, 0, 3, 0], told
    check("worker", bucket, of_workers.seen)
    check("submitter", bucket, of_clients.seen)


@pytest.mark.faults
def test_a_trainer_needs_what_its_policy_allows_and_no_more(
    bucket: str, s3_server: servers.S3Server, tmp_path: Path
) -> None:
    with proxy_before(s3_server.endpoint_url) as way:
        settings = {
            **os.environ,
            "VDSR_STATE_DIR": str(tmp_path / "state"),
            "VDSR_CACHE_DIR": str(tmp_path / "cache"),
            "VDSR_REGISTRY": f"s3://{bucket}/models",
            "VDSR_S3_ENDPOINT_URL": way.url,
            "VDSR_THREADS": "1",
        }
        admin = load_settings({**settings, "VDSR_S3_ENDPOINT_URL": s3_server.endpoint_url})
        upload(make_photos(tmp_path / "hr", 4, size=(60, 48)), open_storage(f"s3://{bucket}/data", admin))
        registry = Registry(admin)
        registry.promote(published(registry, "poor", 700), over=None)
        tiny = ["steps=2", "decay_steps=1", "warmup=1", "batch=2", "patch=24", "validate_every=2", "scales=[2]"]
        words = [word for each in tiny for word in ("--set", each)]
        place = ["--data", f"s3://{bucket}/data", "--validation", "1", "--run", f"s3://{bucket}/runs/one"]
        trained = [vdsr(settings, "train", "--local", *place, *words, "--publish") for _ in range(2)]  # goes on, then
    assert [each.returncode for each in trained] == [3, 3], trained  # not better than what is in production
    check("trainer", bucket, way.seen)


def test_a_request_outside_of_a_policy_stands_out() -> None:
    for request in (
        ("PUT", "b", "source/a.png"),
        ("DELETE", "b", "destination/a.png"),
        ("GET", "other", "source/a.png"),
    ):
        with pytest.raises(AssertionError, match="needs more"):
            check("worker", "b", [request])
    with pytest.raises(AssertionError, match="needs more"):
        check("submitter", "b", [("PUT", "b", "destination/a.png")])
