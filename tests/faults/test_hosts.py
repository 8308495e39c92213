"""Hosts with a network of their own each: one that is cut off is done without, and is welcome when it comes back."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import servers
from helpers import make_photos, wait_until
from rig import Node, rig
from tally import Tally, Watch, add, digests

from worker.uris import open_storage

pytestmark = [pytest.mark.redis, pytest.mark.s3, pytest.mark.faults]

AWAY_S = 20
"""Three leases, and longer than a connection's timeout."""


@dataclass
class Host:
    """A network namespace with one cable to this machine."""

    name: str
    subnet: str
    link: str = field(init=False)

    def __post_init__(self) -> None:
        self.link = f"{self.name}h"
        _ip("netns", "add", self.name)
        try:
            _ip("link", "add", self.link, "type", "veth", "peer", "name", "up0", "netns", self.name)
            _ip("addr", "add", f"{self.gateway}/30", "dev", self.link)
            _ip("link", "set", self.link, "up")
            _ip("-n", self.name, "addr", "add", f"{self.subnet}.2/30", "dev", "up0")
            _ip("-n", self.name, "link", "set", "up0", "up")
            _ip("-n", self.name, "link", "set", "lo", "up")
        except BaseException:
            self.close()
            raise

    @property
    def gateway(self) -> str:
        """This machine's address on the cable."""
        return f"{self.subnet}.1"

    @property
    def inside(self) -> tuple[str, ...]:
        """Runs a command there."""
        return ("ip", "netns", "exec", self.name)

    def cut(self) -> None:
        """Pull the cable: nobody is told."""
        _ip("link", "set", self.link, "down")

    def mend(self) -> None:
        """Put it back."""
        _ip("link", "set", self.link, "up")

    def close(self) -> None:
        """Its end."""
        _ip("netns", "del", self.name)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    """Two of them."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the command 'ip'")
    with ExitStack() as stack:
        made = []
        for n in (1, 2):
            try:
                host = Host(f"vdsr{os.getpid() % 10_000}-{n}", f"10.213.{n}")
            except subprocess.CalledProcessError as exc:
                pytest.skip(f"network namespaces are not permitted here: {exc.stderr.decode().strip()}")
            stack.callback(host.close)
            made.append(host)
        yield made


def test_a_host_that_is_cut_off_and_comes_back_loses_and_doubles_nothing(
    hosts: list[Host], s3_server: servers.S3Server, bucket: str, tmp_path: Path, tally: Tally
) -> None:
    tally.fault = f"a host's network is cut for {AWAY_S} s"
    with rig([], s3=s3_server) as fleet, ExitStack() as stack:
        s3_host, _, s3_port = s3_server.endpoint_url.removeprefix("http://").partition(":")
        service = fleet.service
        for host in hosts:
            redis_way = stack.enter_context(servers.Proxy(fleet.redis.socket, host=host.gateway))
            s3_way = stack.enter_context(servers.Proxy((s3_host, int(s3_port)), host=host.gateway))
            reach = {
                "VDSR_REDIS_URL": f"redis://{host.gateway}:{redis_way.port}/0",
                "VDSR_S3_ENDPOINT_URL": f"http://{host.gateway}:{s3_way.port}",
                "VDSR_CHUNK_IMAGES": "20",
            }
            fleet.nodes.append(Node(host.name, service.folder, service.environment | reach, inside=host.inside))
        for node in fleet.nodes:
            fleet.wait_for(node)
        away, here = fleet.nodes
        source = open_storage(f"s3://{bucket}/in", service.settings)
        for path in make_photos(tmp_path, 300).rglob("*.*"):
            source.write(str(path.relative_to(tmp_path)), path.read_bytes())

        def submit(name: str) -> str:
            return service.submit(f"s3://{bucket}/in", f"s3://{bucket}/{name}", model="timed:0.15", score=False)

        quiet = submit("quiet")
        assert service.wait(quiet)["images"]["done"] == 300
        assert _workers(service.rows(quiet)) == {away.name, here.name}
        wanted = digests(f"s3://{bucket}/quiet", service)

        watch = Watch(fleet)
        with watch.looking():
            watch.jobs.append(job_id := submit("out"))
            wait_until(lambda: fleet.counted(job_id) >= 60 and len(fleet.leases(job_id)) == 2, 120)
            watch.strike(tally)
            hosts[0].cut()
            time.sleep(AWAY_S)
            hosts[0].mend()
            service.wait(job_id)

        assert not away.ended
        again = [submit("again")]
        service.wait(again[0])
        while away.name not in _workers(fleet.service.rows(again[-1])) and len(again) < 5:
            again.append(submit(f"again-{len(again)}"))  # connections that hang are given up within two minutes
            service.wait(again[-1])
        add(tally, service, job_id, wanted, {})
        for other in again:
            add(tally, service, other, wanted, {})
        assert _workers(service.rows(job_id)) == {away.name, here.name}
        assert away.name in _workers(service.rows(again[-1]))
    assert tally.clean, tally


def _workers(rows: dict) -> set[str]:
    """Who did them."""
    return {row.worker.partition("@")[0] for row in rows.values()}
