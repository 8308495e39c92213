"""What does a service look like that a version of this program was stopped in? Freezes it into files, and thaws them.

    python tests/frozen.py tests/records/format-3

was run once, by the version whose format that was, and is not run again: what lies there stands for every Redis and
every destination that this version has left in the world. A new format gets a folder of its own.

    redis.json    every key with its type and value: a job of four chunks, one of them done, one in the hands of a
                  worker that died, two queued; a job with many options that nobody has listed; a training run; their
                  messages
    photos/       the source
    out/          the destination of the first job, with its record
"""

from __future__ import annotations

import base64
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import redis

from vdsr import checkpoint

FOLDER, SHA256, VERSION = "@FOLDER@", "@SHA256@", "@VERSION@"
"""Stand for where it lay, and for the weights that shipped."""
IMAGES = 14


def thaw(records: Path, url: str, folder: Path) -> dict[str, str]:
    """Put what was frozen into a Redis and a folder; the ids of "half", "queued" and "run"."""
    shutil.copytree(records, folder, dirs_exist_ok=True)
    for path in folder.glob("out/.vdsr/*/job.json"):
        path.write_text(_here(path.read_text(), folder))
    server = redis.Redis.from_url(url)
    frozen = json.loads(_here((records / "redis.json").read_text(), folder))
    for key, (kind, value) in frozen["keys"].items():
        name = key.encode("latin-1")
        if kind == "string":
            server.set(name, base64.b64decode(value))
        elif kind == "list":
            server.rpush(name, *value)
        elif kind == "set":
            server.sadd(name, *value)
        else:
            (server.hset(name, mapping=value) if kind == "hash" else server.zadd(name, value))
    return dict(frozen["ids"])


def _here(text: str, folder: Path) -> str:
    identity = checkpoint.identify()
    return text.replace(FOLDER, str(folder)).replace(SHA256, identity.sha256).replace(VERSION, identity.version)


def dump(url: str) -> dict[str, tuple[str, Any]]:
    """Every key of a Redis with its type and value, as JSON can hold it."""
    server = redis.Redis.from_url(url)
    found: dict[str, tuple[str, Any]] = {}
    for key in sorted(server.keys()):
        kind = server.type(key).decode()
        if kind == "string":
            value: Any = base64.b64encode(server.get(key)).decode()
        elif kind == "list":
            value = [text.decode() for text in server.lrange(key, 0, -1)]
        elif kind == "set":
            value = sorted(text.decode() for text in server.smembers(key))
        elif kind == "hash":
            value = {name.decode(): text.decode() for name, text in server.hgetall(key).items()}
        else:
            value = {name.decode(): score for name, score in server.zrange(key, 0, -1, withscores=True)}
        found[key.decode("latin-1")] = (kind, value)
    return found


def freeze(records: Path) -> None:
    """Make what the module's text tells, and write it down."""
    from helpers import make_photos

    from worker.client import Client, draft
    from worker.embedded import LocalRedis
    from worker.jobs import Options
    from worker.plan import plan_job
    from worker.settings import load_settings
    from worker.training.ledger import RunLedger

    folder = Path(tempfile.mkdtemp(prefix="vdsr-"))
    make_photos(folder / "photos", IMAGES)
    (folder / "photos" / "sub" / "bad.png").write_bytes(b"no picture")
    with LocalRedis(folder) as server:
        settings = load_settings(
            {"VDSR_REDIS_URL": server.url, "VDSR_STATE_DIR": str(folder), "VDSR_CHUNK_IMAGES": "4"}
        )
        client = Client.connect(settings)
        half = client.submit(draft(str(folder / "photos"), str(folder / "out"), Options(), settings))
        plan_job(client.ledger, half, settings, "cpu", lambda chunk: client.queue.upscale(half, chunk))
        _work(settings, half)
        options = Options(
            scale=1.5,
            format="png",
            metadata="copyright",
            overwrite="never",
            include=("*.png",),
            exclude=("sub/*",),
            max_failures="5%",
            name_template="{name}-x{scale}.{format}",
            self_ensemble=True,
            score=False,
        )
        queued = client.submit(draft(str(folder / "photos"), str(folder / "small"), options, settings, model="follow"))
        run = _run(folder)
        RunLedger(server.url).create(run)
        client.queue.train(run.id)
        client.fleet.announce(1, "somebody's")
        ids = {"half": half, "queued": queued, "run": run.id}
        text = json.dumps({"ids": ids, "keys": dump(server.url)}, indent=1) + "\n"
    for name in ("photos", "out"):
        shutil.copytree(folder / name, records / name)
    for path in [*records.glob("out/.vdsr/*/job.json"), records / "redis.json"]:
        path.write_text(_elsewhere(text if path.name == "redis.json" else path.read_text(), folder))
    shutil.rmtree(folder)


def _work(settings: Any, job_id: str) -> None:
    """A worker does a chunk, and dies in the next one, with two images of it done and others begun."""
    from contextlib import closing
    from itertools import islice

    from worker.chunk import Lease, _outcomes, do_chunk
    from worker.parts import Parts
    from worker.runtime import Runtime

    here = Runtime(settings)
    do_chunk(here, job_id, 0, worker="vdsr@frozen")
    lease = Lease(here.ledger, job_id, 1, 30, "worker@host:1")
    grant = lease.take()
    assert grant
    images = Parts(grant.job, settings).manifest(1).images
    with closing(_outcomes(here, lease, grant, images)) as outcomes:
        for ended in islice(outcomes, 2):
            lease.record(ended)


def _run(folder: Path) -> Any:
    import time

    from vdsr.training.recipe import read_recipe
    from worker.training.runs import Run, new_run_id

    words = {"steps": "8", "decay_steps": "4", "warmup": "2", "batch": "2", "patch": "16", "validate_every": "4"}
    run_id = new_run_id()
    return Run(
        id=run_id,
        data=(str(folder / "photos"),),
        held=1,
        recipe=read_recipe("best", words | {"scales": "[2]"}),
        version=run_id,
        command="vdsr train --data photos",
        folder=str(folder / "runs" / run_id),
        created=time.time(),
    )


def _elsewhere(text: str, folder: Path) -> str:
    identity = checkpoint.identify()
    return text.replace(str(folder), FOLDER).replace(identity.sha256, SHA256).replace(identity.version, VERSION)


if __name__ == "__main__":
    freeze(Path(sys.argv[1]))
