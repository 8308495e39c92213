"""Whom does the service believe? Nobody's message, file or name; and its secrets show nowhere."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import json
import os
import pickle
import shutil
import socket
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import pytest
import redis
import servers
import torch
from faults.secured import ADMIN, PASSWORD, Secured, documented_user
from helpers import VDSR, make_photos, vdsr, wait_until
from safetensors.torch import save as serialise

from vdsr import checkpoint, model
from vdsr.errors import VdsrError
from worker.app import PLAN, QUEUE, UPSCALE, make_app
from worker.client import Client
from worker.errors import BrokerRefused, BrokerUnreachable, NewerFormat, UsageError
from worker.jobs import SCHEMA, Job, Model, Options, State
from worker.redis_client import RedisClient
from worker.settings import load_settings, mask
from worker.uris import open_storage

pytestmark = [pytest.mark.redis, pytest.mark.s3]


# ---- messages -------------------------------------------------------------------------------------------------------


class Bomb:
    """A pickle that makes a folder when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def envelope(content: object, **changes: object) -> bytes:
    """A message as Celery puts it on the queue."""
    message = {
        "body": base64.b64encode(json.dumps(content).encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"lang": "py", "task": UPSCALE, "id": os.urandom(4).hex(), "argsrepr": "", "kwargsrepr": ""},
        "properties": {
            "correlation_id": os.urandom(4).hex(),
            "reply_to": "",
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": QUEUE},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": os.urandom(8).hex(),
        },
    }
    return json.dumps({**message, **changes}).encode()


def task(name: str, args: object = (), kwargs: object = None) -> bytes:
    """A call of a task, well-formed but for what is asked."""
    headers = {"lang": "py", "task": name, "id": os.urandom(4).hex(), "argsrepr": "", "kwargsrepr": ""}
    return envelope([args, kwargs or {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}],
                    headers=headers)  # fmt: skip


def hostile_messages(owned: Path) -> list[bytes]:
    """What anybody might put on the queue."""
    bomb = base64.b64encode(pickle.dumps(Bomb(owned))).decode()
    pickles = [
        envelope([], **{"content-type": kind, "content-encoding": "binary", "body": bomb})
        for kind in ("application/x-python-serialize", "application/x-pickle", "pickle", "application/data")
    ]
    disguised = envelope([], body=bomb)
    yaml = b"!!python/object/apply:os.mkdir ['%s']" % os.fsencode(owned)
    others = [
        envelope([], **{"content-type": "application/x-yaml", "body": base64.b64encode(yaml).decode()}),
        envelope([], **{"content-type": "application/x-msgpack"}),
        envelope("no list"),
        envelope([], body=base64.b64encode(b"[" * 100_000).decode()),
        envelope([]),
        envelope(None),
        envelope({"args": [1]}),
        envelope([[], {}, {}], headers={}),
        envelope([[], {}, {}], body="%%% no base64"),
        task("os.mkdir", [str(owned)]),
        task("celery.backend_cleanup"),
        task("celery.accumulate", [1]),
        task("celery.map", [{"task": "x"}, []]),
        *(task(UPSCALE, args) for args in ([], ["x"], ["x", "y", "z"], [None, 1], [{"a": 1}, [2]], ["../..", -1])),
        *(task(UPSCALE, args) for args in ("no list", 5, ["x" * 1_000_000, 0], ["x", 10**40], ["x", float("nan")])),
        task(UPSCALE, ["x", 0], {"settings": "x"}),
        task(UPSCALE, ["x", 0], ["no", "mapping"]),
        task(PLAN, ["no-such-job"]),
        task(PLAN, [["a", "list"]]),
    ]
    no_messages = [b"no JSON", b"", b"\xff\xfe", b"[]", b"null", b"7", b"{}", b'{"body": 1}', b"[[[[", b"[" * 100_000]
    return [*pickles, disguised, *others, *no_messages]


@pytest.mark.slow
def test_no_message_runs_code_or_ends_the_worker(secured: Secured, tmp_path: Path) -> None:
    owned = tmp_path / "owned"
    (parent,) = secured.service.workers
    for message in hostile_messages(owned):
        secured.admin.lpush(f"vdsr:{QUEUE}", message)
    wait_until(lambda: secured.admin.llen(f"vdsr:{QUEUE}") == 0, 60)

    summary = secured.service.run(make_photos(tmp_path / "photos", 4))

    assert summary["images"]["done"] == 4
    assert not owned.exists()
    assert parent.poll() is None
    assert len(secured.service.children()) == 1
    log = (secured.service.folder / "worker.log").read_text()
    assert "Refusing to deserialize" in log or "ContentDisallowed" in log
    assert "Received unregistered task of type 'os.mkdir'" in log
    wait_until(lambda: secured.admin.hlen("vdsr:unacked") == 0, 60)


# ---- Redis ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_documented_permissions_suffice_for_jobs_kills_retries_and_cancels(
    secured: Secured, tmp_path: Path
) -> None:
    service = secured.service
    secured.admin.acl_log_reset()
    photos = make_photos(tmp_path / "photos", 30, size=(64, 48))
    (photos / "bad.png").write_bytes(b"")
    job_id = service.submit(photos)
    wait_until(lambda: int(service.client.ledger.record(job_id).counters.get("done", 0)) >= 3, 120)
    secured.restart_worker()

    summary = service.wait(job_id)
    assert summary["images"] == {"total": 31, "done": 30, "failed": 1, "skipped": 0, "ignored": 0}
    assert service.client.retry(job_id) == 1
    service.wait(job_id)
    other = service.submit(photos, tmp_path / "other", score=False)
    service.client.cancel(other)
    wait_until(lambda: service.client.ledger.record(other).state is State.CANCELLED)
    assert make_app(service.settings).control.inspect(timeout=10).ping()
    service.client.fleet.announce(1, "v")
    service.client.fleet.report_refusal("v", "why")
    service.client.ledger.job_ids()
    refused = [entry for entry in secured.admin.acl_log() if entry["username"] == "worker"]
    assert refused == []


@pytest.mark.faults
def test_clients_and_a_monitor_need_no_more_than_their_own_permissions(secured: Secured, tmp_path: Path) -> None:
    service = secured.service
    secured.admin.acl_log_reset()
    photos = make_photos(tmp_path / "photos", 4)
    (photos / "bad.png").write_bytes(b"")
    state = {**service.environment, "HOME": str(tmp_path), "VDSR_REDIS_URL": secured.redis.url("submitter", PASSWORD)}

    job = vdsr(state, "submit", str(photos)).stdout.strip()
    told = [
        vdsr(state, "wait", job),
        vdsr(state, "status", job, "--json"),
        vdsr(state, "retry", job),
        vdsr(state, "wait", job),
        vdsr(state, "list"),
        vdsr(state, "submit", str(photos), "--dry-run"),
        vdsr(state, "doctor"),
        vdsr(state, "models", "promote", "shipped"),
    ]
    other = vdsr(state, "submit", str(photos), str(tmp_path / "other")).stdout.strip()
    told.append(vdsr(state, "cancel", other))
    secured.admin.delete(f"vdsr:{{{job}}}:job", f"vdsr:{{{job}}}:open", f"vdsr:{{{job}}}:done")
    record = tmp_path / "photos-x2" / ".vdsr" / job
    content = json.loads((record / "job.json").read_text())
    (record / "job.json").write_text(json.dumps({name: value for name, value in content.items() if name != "ended"}))
    told.append(vdsr(state, "resume", str(tmp_path / "photos-x2")))
    settings = load_settings({**state, "VDSR_REDIS_URL": secured.redis.url("exporter", PASSWORD)})
    watching = Client.connect(settings)
    records = [watching.ledger.record(job_id) for job_id in watching.ledger.job_ids()]
    looks = (watching.workers(), watching.fleet.queue_length(QUEUE), watching.fleet.refusals(), watching.unseen_s())

    assert [each.returncode for each in told] == [3, 0, 0, 3, 0, 0, 0, 0, 0, 0], told
    assert len(records) >= 2
    assert len(looks[0]) == 1
    refused = [entry for entry in secured.admin.acl_log() if entry["username"] != "worker"]
    assert refused == []
    Path(service.settings.registry, "aliases/production.json").unlink(missing_ok=True)


@pytest.mark.faults
def test_the_exporter_serves_the_fleets_metrics_by_its_own_permissions(secured: Secured, tmp_path: Path) -> None:
    secured.admin.acl_log_reset()
    (port,) = servers.free_ports(1)
    ours = {**secured.service.environment, "VDSR_REDIS_URL": secured.redis.url("exporter", PASSWORD)}
    with servers.child_process([VDSR, "metrics", "--port", str(port)], tmp_path / "exporter.log", ours):
        page = _asked(f"http://127.0.0.1:{port}/metrics", "vdsr_redis_up 1.0")

    assert 'vdsr_workers{queue="upscale"} 1.0' in page
    assert [entry for entry in secured.admin.acl_log() if entry["username"] == "exporter"] == []


@pytest.mark.faults
def test_flower_needs_the_channels_of_all_events_beside_a_workers_permissions(secured: Secured, tmp_path: Path) -> None:
    pytest.importorskip("flower")
    secured.admin.execute_command(
        "ACL", "SETUSER", *documented_user().replace("user worker", "flower").split(), "&vdsr:/0.celeryev/*"
    )
    secured.admin.acl_log_reset()
    (port,) = servers.free_ports(1)
    ours = {
        **secured.service.environment,
        "VDSR_REDIS_URL": secured.redis.url("flower", PASSWORD),
        "FLOWER_UNAUTHENTICATED_API": "true",
    }
    command = [sys.executable, "-m", "celery", "-A", "worker", "flower", "--address=127.0.0.1", f"--port={port}"]
    with servers.child_process(command, tmp_path / "flower.log", ours):
        _asked(f"http://127.0.0.1:{port}/api/workers?refresh=1", "secured@")
        lengths = _asked(f"http://127.0.0.1:{port}/api/queues/length", "messages")

    assert '"name": "upscale"' in lengths
    assert [entry for entry in secured.admin.acl_log() if entry["username"] == "flower"] == []


def _asked(url: str, wanted: str) -> str:
    """A page, once it is served and says what is wanted."""
    found = [""]

    def asked() -> bool:
        with suppress(OSError), urllib.request.urlopen(url, timeout=30) as answer:
            found[0] = answer.read().decode()
        return wanted in found[0]

    wait_until(asked, 120)
    return found[0]


@pytest.mark.parametrize(
    ("user", "command"),
    [("submitter", ("BRPOP", "vdsr:upscale", "1")), ("submitter", ("LRANGE", "vdsr:upscale", "0", "-1")),
     ("submitter", ("FLUSHALL",)), ("submitter", ("GET", "other")), ("submitter", ("CONFIG", "GET", "*")),
     ("exporter", ("SET", "vdsr:x", "1")), ("exporter", ("LPUSH", "vdsr:upscale", "x")),
     ("exporter", ("DEL", "vdsr:jobs")), ("exporter", ("EVALSHA", "0" * 40, "0")), ("exporter", ("GET", "other")),
     ("exporter", ("KEYS", "*"))],
)  # fmt: skip
def test_clients_take_no_messages_and_a_monitor_writes_nothing(
    secure_redis: servers.SecureRedis, user: str, command: tuple[str, ...]
) -> None:
    authority = str(secure_redis.authority)
    ours = redis.Redis.from_url(secure_redis.url(user, PASSWORD), ssl_ca_certs=authority, protocol=2)
    with pytest.raises(redis.exceptions.NoPermissionError):
        ours.execute_command(*command)


@pytest.mark.parametrize(
    "command",
    [("FLUSHALL",), ("CONFIG", "GET", "*"), ("KEYS", "*"), ("EVAL", "return 1", "0"), ("GET", "other"), ("SHUTDOWN",),
     ("SUBSCRIBE", "other"), ("ACL", "LIST"), ("CLIENT", "KILL", "TYPE", "normal"), ("REPLICAOF", "localhost", "1"),
     ("MONITOR",), ("SLOWLOG", "GET")],
)  # fmt: skip
def test_the_documented_permissions_allow_nothing_else(secured: Secured, command: tuple[str, ...]) -> None:
    ours = redis.Redis.from_url(
        secured.redis.url("worker", PASSWORD), ssl_ca_certs=str(secured.redis.authority), protocol=2
    )
    with pytest.raises(redis.exceptions.NoPermissionError):
        ours.execute_command(*command)


def test_a_command_that_is_not_permitted_is_told_without_the_password(secured: Secured) -> None:
    with pytest.raises(BrokerRefused) as caught:
        RedisClient(secured.service.settings.redis_url).do("flushall")
    assert "refused a command" in str(caught.value)
    assert PASSWORD not in str(caught.value) + repr(caught.value.__cause__)


@pytest.mark.parametrize("whose", ["nobody's", "another's"])
def test_a_server_whose_certificate_is_not_vouched_for_gets_no_password(
    secure_redis: servers.SecureRedis, tmp_path: Path, whose: str
) -> None:
    environment = {"VDSR_REDIS_URL": secure_redis.url("worker", PASSWORD)}
    if whose == "another's":
        environment["VDSR_REDIS_CA"] = str(servers.make_certificate(tmp_path)[0])
    settings = load_settings(environment)
    with pytest.raises(BrokerUnreachable) as caught:
        Client.connect(settings)
    assert PASSWORD not in str(caught.value)
    with make_app(settings).connection_for_write() as connection, pytest.raises(Exception, match=r"(?i)certificate"):
        connection.default_channel.client.ping()


def test_another_name_than_the_certificates_is_refused(secure_redis: servers.SecureRedis) -> None:
    url = secure_redis.url("worker", PASSWORD).replace("localhost", "127.0.0.2")
    with pytest.raises(BrokerUnreachable):
        Client.connect(load_settings({"VDSR_REDIS_URL": url, "VDSR_REDIS_CA": str(secure_redis.authority)}))


def test_a_wrong_password_is_told_without_it(secure_redis: servers.SecureRedis) -> None:
    url = secure_redis.url("worker", "wrong-" + PASSWORD)
    with pytest.raises((BrokerUnreachable, BrokerRefused)) as caught:
        Client.connect(load_settings({"VDSR_REDIS_URL": url, "VDSR_REDIS_CA": str(secure_redis.authority)}))
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "authority", "said"),
    [
        ("redis://h:1/0", "here", r"has no TLS; write rediss://"),
        ("rediss://h:1/0", "gone", r"which is no file; give a certificate in PEM"),
        ("rediss://h:1/0?password=geheim", None, r"has a password behind '\?'; write it as rediss://user:password@"),
    ],
)
def test_settings_that_would_not_protect_are_refused(url: str, authority: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "here").write_text("")
    environment = {"VDSR_REDIS_URL": url} | ({"VDSR_REDIS_CA": str(tmp_path / authority)} if authority else {})
    with pytest.raises(UsageError, match=said) as caught:
        load_settings(environment)
    assert "geheim" not in str(caught.value)


def test_a_redis_of_ones_own_needs_no_certificate_though_one_is_set(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("")
    fleet = load_settings({"VDSR_REDIS_URL": "rediss://h:1/0", "VDSR_REDIS_CA": str(tmp_path / "ca.pem")})

    local = dataclasses.replace(fleet, redis_url="unix:///run/redis.sock")

    assert (local.redis_url, local.broker_tls) == ("unix:///run/redis.sock", None)
    assert fleet.redis_url == f"rediss://h:1/0?ssl_ca_certs={quote(str(tmp_path / 'ca.pem'), safe='')}"


def test_settings_do_not_print_the_password() -> None:
    settings = load_settings({"VDSR_REDIS_URL": f"redis://u:{PASSWORD}@h:1/0"})
    assert PASSWORD not in repr(settings)
    assert mask(settings.redis_url) == "redis://u:***@h:1/0"


# ---- secrets --------------------------------------------------------------------------------------------------------


@pytest.mark.faults
def test_no_secret_is_written_or_printed_anywhere(
    secured: Secured, bucket: str, s3_server: servers.S3Server, tmp_path: Path
) -> None:
    service = secured.service
    photos = make_photos(tmp_path / "photos", 6)
    (photos / "bad.png").write_bytes(b"what is this")
    source = open_storage(f"s3://{bucket}/in", service.settings)
    for path in photos.glob("*.*"):
        source.write(path.name, path.read_bytes())
    state = {**service.environment, "HOME": str(tmp_path)}
    wrong = {"VDSR_REDIS_URL": service.environment["VDSR_REDIS_URL"].replace("localhost", "127.0.0.2")}
    commands = [
        vdsr(state, "submit", f"s3://{bucket}/in", f"s3://{bucket}/out", "--wait"),
        vdsr(state, "submit", str(photos), str(tmp_path / "out"), "--wait", "--json"),
        vdsr(state, "submit", f"s3://{bucket}-gone/in", f"s3://{bucket}/out"),
        vdsr(state, "submit", str(photos), f"s3://{bucket}-gone/out", "--wait"),
        vdsr(state, "list"),
        vdsr(state, "doctor", f"s3://{bucket}/in"),
        vdsr(state, "list", **wrong),
        vdsr(state, "submit", str(photos), **{"VDSR_REDIS_URL": f"http://u:{PASSWORD}@h"}),
        vdsr(state, "doctor", f"s3://{bucket}/in", AWS_ACCESS_KEY_ID="stranger"),
    ]
    assert [result.returncode for result in commands[:2]] == [3, 3], commands[:2]
    secured.restart_worker()
    service.run(photos, tmp_path / "again")
    secured.admin.bgrewriteaof()
    secured.admin.save()
    wait_until(lambda: not secured.admin.info("persistence")["aof_rewrite_in_progress"], 60)
    (tmp_path / "printed").write_text("\n".join(result.stdout + result.stderr for result in commands))
    (tmp_path / "record").write_bytes(_whole(s3_server, bucket))

    secrets = {"Redis password": PASSWORD, "S3 secret": s3_server.secret_key, "admin": ADMIN}
    config = {secured.redis.folder / "users.acl"}
    folders = [tmp_path, service.folder, secured.redis.folder]
    assert _found(secrets, folders, config) == []
    assert _found({"canary": "what is this"}, folders, config) != []  # it does look into what jobs write


def _whole(server: servers.S3Server, bucket: str) -> bytes:
    """Every object of a bucket, hidden ones too, one behind the other."""
    from worker.storage.s3 import clients

    client = clients.get(server.endpoint_url, None)
    keys = [found["Key"] for found in client.list_objects_v2(Bucket=bucket)["Contents"]]
    assert any("/.vdsr/" in key for key in keys)
    return b"\n".join(client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys)


def _found(secrets: dict[str, str], folders: list[Path], config: set[Path]) -> list[str]:
    """Where a secret stands, as it is or in the encodings of URLs, base64 and gzip."""
    found = []
    listed = [path for folder in folders for path in folder.rglob("*")]
    for path in (path for path in listed if path.is_file() and path not in config):
        try:
            data = path.read_bytes()
        except FileNotFoundError:  # Redis' own, which it has replaced meanwhile by another that is looked into
            continue
        if data.startswith(b"\x1f\x8b"):
            data += gzip.decompress(data)
        for name, secret in secrets.items():
            spellings = [secret.encode(), base64.b64encode(secret.encode())[:-2], secret.encode("utf-16-le")]
            found += [f"{name} in {path}" for spelling in spellings if spelling in data]
    return found


# ---- weights --------------------------------------------------------------------------------------------------------


def wrong_checkpoints(folder: Path, owned: Path) -> dict[str, Path]:
    """Files that are no checkpoint of ours, each in its own way."""
    state = dict(model.VDSR().state_dict())
    card = {"format": checkpoint.FORMAT, "version": "x", "depth": "20", "channels": "64"}
    narrow = {name: tensor[:5] if tensor.ndim else tensor for name, tensor in state.items()}
    sound = checkpoint.to_bytes(model.VDSR(), version="x")
    files = {
        "a pickle": pickle.dumps({"state_dict": Bomb(owned)}),
        "other shapes": serialise({name: tensor.contiguous() for name, tensor in narrow.items()}, metadata=card),
        "another network": serialise({"a": torch.zeros(3)}, metadata=card),
        "cut off": sound[: len(sound) // 2],
        "a header of gigabytes": (10**12).to_bytes(8, "little") + sound[8:],
        "nothing": b"",
    }
    paths = {}
    for name, data in files.items():
        paths[name] = folder / f"{name.replace(' ', '-')}.safetensors"
        paths[name].write_bytes(data)
    paths["a pickle by torch"] = folder / "torch.pth"
    torch.save({"state_dict": Bomb(owned)}, paths["a pickle by torch"])
    return paths


LONG = pytest.mark.faults  # each runs four commands
NAMES = ["a pickle", "a pickle by torch", "another network", "cut off", "a header of gigabytes", "nothing"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["other shapes", *(pytest.param(name, marks=LONG) for name in NAMES)])
def test_no_command_takes_weights_that_are_not_what_they_claim(name: str, tmp_path: Path) -> None:
    folder = Path(os.environ.get("TMPDIR", "/tmp")) / f"vdsr-{os.urandom(4).hex()}"
    state = {**os.environ, "VDSR_STATE_DIR": str(folder), "VDSR_THREADS": "1"}
    owned, photos = tmp_path / "owned", make_photos(tmp_path / "photos", 1)
    path = wrong_checkpoints(tmp_path, owned)[name]
    commands = [
        vdsr(state, "upscale", photos, tmp_path / "out", VDSR_WEIGHTS=str(path)),
        vdsr(state, "models", "publish", path),
        vdsr(state, "models", "import", path, tmp_path / "imported.safetensors"),
    ]
    shutil.rmtree(folder, ignore_errors=True)
    assert commands[0].returncode in (2, 4)  # refused at once, or by the worker, whose job then fails
    for result in commands:
        assert result.returncode == 2 or result is commands[0], result
        assert "Traceback" not in result.stderr
        assert len(result.stderr) > 20
    assert not owned.exists()
    assert not list((tmp_path / "out").glob("*.png"))
    assert not (tmp_path / "imported.safetensors").exists()


# ---- where S3 is ----------------------------------------------------------------------------------------------------


@contextmanager
def listener() -> Iterator[tuple[int, list[bytes]]]:
    """A port on which nobody should call, and what was said by those who did."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        ended = threading.Event()

        def listen() -> None:
            while not ended.is_set():
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    continue
                with connection:
                    connection.settimeout(2)
                    heard.append(connection.recv(1000))

        thread = threading.Thread(target=listen)
        thread.start()
        yield server.getsockname()[1], heard
        ended.set()
        thread.join()


HOSTILE_PLACES = [
    "s3://127.0.0.1:{port}/x",
    "s3://user:password@127.0.0.1:{port}/x",
    "s3://bucket.127.0.0.1:{port}/x",
    "s3://bucket/x?endpoint_url=http://127.0.0.1:{port}",
    "s3://bucket@127.0.0.1:{port}#/x",
    "s3://http://127.0.0.1:{port}/x",
    "http://127.0.0.1:{port}/x",
    "//127.0.0.1:{port}/x",
]


@pytest.mark.faults
def test_a_job_cannot_send_a_worker_or_its_credentials_to_another_server(secured: Secured, tmp_path: Path) -> None:
    service = secured.service
    sound = make_photos(tmp_path / "photos", 1)
    weights = Model(checkpoint.identify().version, checkpoint.identify().sha256)
    with listener() as (port, heard):
        ids = []
        for number, template in enumerate(HOSTILE_PLACES):
            place = template.format(port=port)
            for source, target in ((place, str(tmp_path / f"out{number}")), (str(sound), place)):
                job = Job(f"hostile-{number}-{len(ids)}", source, target, Options(), weights)
                service.client.ledger.create(job)
                service.client.queue.plan(job.id)
                ids.append(job.id)
            with pytest.raises(VdsrError):
                service.submit(place, tmp_path / "out")
        wait_until(lambda: all(service.client.ledger.record(job_id).state.ended for job_id in ids), 240)
        assert heard == []
    assert {service.client.ledger.record(job_id).state for job_id in ids} <= {State.FAILED, State.COMPLETED}


def test_a_job_that_names_a_server_is_refused(secured: Secured) -> None:
    identity = checkpoint.identify()
    job = Job("x", "s3://bucket/in", "s3://bucket/out", Options(), Model(identity.version, identity.sha256))
    raw = json.loads(job.to_json())
    for changed in (
        {**raw, "endpoint_url": "http://evil"},
        {**raw, "options": {**raw["options"], "endpoint_url": "http://evil"}},
        {**raw, "options": {**raw["options"], "s3_endpoint_url": "http://evil"}},
    ):
        with pytest.raises(NewerFormat, match=f"has format {SCHEMA} with (s3_)?endpoint_url"):
            Job.from_json(json.dumps(changed))
    names = {field.name for kind in (Job, Options, Model) for field in dataclasses.fields(kind)}
    assert not [name for name in names if "endpoint" in name or "credential" in name or "secret" in name]
