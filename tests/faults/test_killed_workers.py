"""Workers that are killed: wherever they were, every image gets one outcome, and the bytes are those of a quiet run."""

from __future__ import annotations

import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import servers
from helpers import cpu_seconds, make_photos, owner_of, wait_until
from PIL import Image
from rig import Node, Rig, rig
from tally import Tally, Watch, add, digests

from worker.uris import open_storage

pytestmark = [pytest.mark.redis, pytest.mark.s3]

TAKEOVER_S = 60
"""Within this much of a kill, the dead worker's chunk is in other hands."""


@pytest.fixture(scope="module")
def pair(s3_server: servers.S3Server) -> Iterator[Rig]:
    """Two workers that reach Redis and S3 through proxies."""
    with rig(["one", "two"], s3=s3_server) as made:
        yield made


STAGES = {
    "listing": (b"/manifest/0000000.jsonl", True),  # the part is written, and the ledger does not know yet
    "fetching": (b"GET /{bucket}/in/sub/0005.png", False),
    "writing": (b"PUT /{bucket}/out/sub/0005.png", False),
    "between writing and recording": (b"PUT /{bucket}/out/sub/0005.png", True),
    "between the results and their commit": (b"/results/0000000.jsonl", True),
}
"""What a worker sends to S3 at that point, and whether it is S3's answer that never comes."""


@pytest.mark.parametrize(
    "stage", [pytest.param(name, marks=() if "record" in name else pytest.mark.faults) for name in STAGES]
)
def test_a_worker_that_dies_at_any_point_costs_no_image(
    pair: Rig, bucket: str, tmp_path: Path, tally: Tally, stage: str
) -> None:
    tally.fault = f"kill -9 of a worker while {stage}" if " " not in stage else f"kill -9 of a worker {stage}"
    service = pair.service
    _upload(make_photos(tmp_path / "photos", 12), f"s3://{bucket}/in", pair)
    wanted = _quiet_run(pair, f"s3://{bucket}/in", f"s3://{bucket}/quiet")
    pattern, replies = STAGES[stage]
    assert pair.s3_way
    watch = Watch(pair)
    hold = pair.s3_way.hold(pattern.replace(b"{bucket}", bucket.encode()), replies=replies)

    with watch.looking():
        job_id = service.submit(f"s3://{bucket}/in", f"s3://{bucket}/out", score=False)
        watch.jobs.append(job_id)
        wait_until(lambda: bool(hold.ports))
        victim = _node_of(pair, hold.ports[0])
        if replies and stage != "listing":
            wait_until(lambda: _is_there(pair, f"s3://{bucket}/out", job_id, stage))
        watch.strike(tally)
        victim.kill()
        hold.release()
        service.wait(job_id)

    victim.start()
    pair.wait_for(victim)
    add(tally, service, job_id, wanted, {})
    assert tally.clean, tally
    assert all(seconds < TAKEOVER_S for seconds in tally.recovery_s)
    if stage != "listing":  # a planner has no lease
        assert tally.recovery_s


@pytest.mark.faults
def test_with_the_lease_of_production_a_killed_workers_chunk_is_taken_over_within_a_minute(
    tmp_path: Path, tally: Tally
) -> None:
    tally.fault = "kill -9 of a worker while upscaling, lease of 30 s"
    _strike_who_computes(tmp_path, tally, Node.kill, lease_s=30)
    assert max(tally.recovery_s) < TAKEOVER_S


@pytest.mark.faults
def test_an_image_whose_nodes_are_killed_again_and_again_is_not_to_blame(
    pair: Rig, bucket: str, tmp_path: Path, tally: Tally
) -> None:
    tally.fault = "kill -9 of four nodes in a row at the same image"
    _upload(make_photos(tmp_path / "photos", 6), f"s3://{bucket}/in", pair)
    wanted = _quiet_run(pair, f"s3://{bucket}/in", f"s3://{bucket}/quiet")
    assert pair.s3_way
    watch = Watch(pair)
    hold = pair.s3_way.hold(f"GET /{bucket}/in/sub/0005.png".encode())
    with watch.looking():
        job_id = pair.service.submit(f"s3://{bucket}/in", f"s3://{bucket}/out", score=False)
        watch.jobs.append(job_id)
        for n in range(4):
            wait_until(lambda n=n: len(hold.ports) > n, 120)
            victim = _node_of(pair, hold.ports[n])
            watch.strike(tally)
            victim.kill()
            victim.start()
        hold.release()
        pair.service.wait(job_id)

    add(tally, pair.service, job_id, wanted, {})
    assert tally.clean, tally


@pytest.mark.faults
def test_the_chunk_of_a_process_that_died_goes_back_at_once(tmp_path: Path, tally: Tally) -> None:
    tally.fault = "kill -9 of a worker's process, Celery lives on, lease of 600 s"
    _strike_who_computes(tmp_path, tally, Node.kill_child, lease_s=600)
    assert max(tally.recovery_s) < 20  # Celery takes ten to be sure


@pytest.mark.faults
def test_idle_workers_that_die_or_vanish_take_no_message_with_them(pair: Rig, tmp_path: Path, tally: Tally) -> None:
    tally.fault = "an idle worker vanishes, its connections stay half open"
    photos = make_photos(tmp_path / "photos", 12)
    wanted = _quiet_run(pair, photos, tmp_path / "quiet")

    # Redis still believes in the dead worker's waiting pop, and gives it the next message.
    pair.redis_way.silence()
    for node in pair.nodes:
        node.kill()
    pair.redis_way.restore(old=False)
    tally.runs += 1
    job_id = pair.service.submit(photos, tmp_path / "out", score=False)
    began = time.monotonic()
    for node in pair.nodes:
        node.start()
    wait_until(lambda: pair.counted(job_id) > 0, 120)
    tally.recovery_s.append(time.monotonic() - began)
    pair.service.wait(job_id)

    add(tally, pair.service, job_id, wanted, {})
    assert tally.clean, tally
    assert max(tally.recovery_s) < 2 * TAKEOVER_S  # their starting included


@pytest.mark.faults
def test_workers_killed_at_random_lose_nothing_of_two_thousand_images(tmp_path: Path, tally: Tally) -> None:
    tally.fault = "kill -9 of workers at random, 2,000 images"
    photos = make_photos(tmp_path / "photos", 2000, size=(48, 40))
    with rig(["one", "two", "three"], chunk_images=40) as fleet:
        wanted = _quiet_run(fleet, photos, tmp_path / "quiet")
        watch = Watch(fleet)
        ended = threading.Event()
        with watch.looking():
            job_id = fleet.service.submit(photos, tmp_path / "out", score=False)
            watch.jobs.append(job_id)
            killer = threading.Thread(target=_kill_at_random, args=(fleet, watch, tally, ended), daemon=True)
            killer.start()
            summary = fleet.service.wait(job_id, timeout_s=900)
            ended.set()
            killer.join()

        add(tally, fleet.service, job_id, wanted, {})
    assert tally.clean, tally
    assert summary["images"] == {"total": 2000, "done": 2000, "failed": 0, "skipped": 0, "ignored": 0}
    assert tally.runs >= 10
    assert tally.recovery_s
    # A kill may hit the successor too, before it has taken the lease, and all others may be in the midst of a chunk.
    assert statistics.median(tally.recovery_s) < TAKEOVER_S
    assert max(tally.recovery_s) < 3 * TAKEOVER_S


def _strike_who_computes(tmp_path: Path, tally: Tally, strike: Callable[[Node], object], *, lease_s: int) -> None:
    """At a large image, in a job of one chunk: the other worker has nothing to do, and takes over."""
    photos = make_photos(tmp_path / "photos", 40)
    Image.effect_noise((1200, 900), 60).convert("RGB").save(photos / "0000-large.png")
    with rig(["one", "two"], lease_s=lease_s) as fleet:
        wanted = _quiet_run(fleet, photos, tmp_path / "quiet")
        watch = Watch(fleet)
        with watch.looking():
            job_id = fleet.service.submit(photos, tmp_path / "out", score=False)
            watch.jobs.append(job_id)
            wait_until(lambda: "try:1" in fleet.progress(job_id), 120)
            victim = max(fleet.nodes, key=_busy)
            watch.strike(tally)
            strike(victim)
            fleet.service.wait(job_id)

        add(tally, fleet.service, job_id, wanted, {})
    assert tally.clean, tally
    assert tally.recovery_s


def _kill_at_random(fleet: Rig, watch: Watch, tally: Tally, ended: threading.Event) -> None:
    """Every few seconds one of the workers, in one of three ways; it is started again a little later."""
    chance = random.Random(7)
    while not ended.wait(chance.uniform(4, 10)):
        victim = chance.choice(fleet.nodes)
        ways: list[Callable[[], object]] = [victim.kill, victim.kill_celery, victim.kill_child]
        watch.strike(tally)
        chance.choice(ways)()
        if victim.ended and not ended.wait(chance.uniform(0, 3)):
            victim.start()


def _quiet_run(fleet: Rig, source: str | Path, destination: str | Path) -> dict[str, str]:
    """What a run without faults makes: output -> digest."""
    summary = fleet.service.run(source, destination, score=False)
    assert summary["state"] == "completed"
    made = digests(str(destination), fleet.service)
    assert len(made) == summary["images"]["done"] == summary["images"]["total"]
    return made


def _upload(folder: Path, uri: str, fleet: Rig) -> None:
    storage = open_storage(uri, fleet.service.settings)
    for path in folder.rglob("*.*"):
        storage.write(path.relative_to(folder).as_posix(), path.read_bytes())


def _is_there(fleet: Rig, uri: str, job_id: str, stage: str) -> bool:
    key = "sub/0005.png"
    if stage == "between the results and their commit":
        uri, key = f"{uri}/.vdsr/{job_id}", "results/0000000.jsonl"
    return open_storage(uri, fleet.service.settings).exists(key)


def _node_of(fleet: Rig, port: int) -> Node:
    """Whose process has a connection from this port."""
    owner = owner_of(port, [pid for node in fleet.nodes for pid in node.children])
    return next(node for node in fleet.nodes if owner in node.children)


def _busy(node: Node) -> float:
    """Processor time that its child takes in a second."""
    children = node.children
    before = sum(map(cpu_seconds, children))
    time.sleep(1)
    return sum(map(cpu_seconds, children)) - before
