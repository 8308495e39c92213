"""What lies in deploy/kubernetes, rendered as `kubectl apply -k` does: valid, and true of our Redis and commands."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest
import redis
import yaml
from helpers import wait_until
from servers import free_ports

from cli.main import root
from worker.app import QUEUE, TRAINING, Queue, make_app
from worker.embedded import LocalRedis, find_server, guarded
from worker.fleet import Fleet
from worker.redis_client import RedisClient
from worker.settings import load_settings

kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="'make check-deploy' installs it")

FOLDER = Path(__file__).parents[1] / "deploy" / "kubernetes"
OVERLAYS = ("cpu", "gpu", "train")
CLUSTERS = ("1.30", "1.37")
"""Versions of Kubernetes whose schemas everything must fit."""

SCALED_OBJECT = {
    "scaleTargetRef", "pollingInterval", "cooldownPeriod", "minReplicaCount", "maxReplicaCount", "advanced", "triggers",
}  # fmt: skip
"""Fields of KEDA 2.12's ScaledObject that we use. Its schema is in no Python package, so the names are checked here."""


@cache
def rendered(name: str) -> list[dict[str, Any]]:
    """The objects of an overlay, or of redis."""
    folder = FOLDER / name if name == "redis" else FOLDER / "overlays" / name
    kubectl = Path(sys.executable).with_name("kubectl")
    made = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True, check=True)
    return list(yaml.safe_load_all(made.stdout))


def one(name: str, kind: str) -> dict[str, Any]:
    """The only object of a kind."""
    (found,) = [each for each in rendered(name) if each["kind"] == kind]
    return found


def container(name: str) -> dict[str, Any]:
    """The worker's."""
    (found,) = one(name, "Deployment")["spec"]["template"]["spec"]["containers"]
    return found


@pytest.mark.parametrize("name", [*OVERLAYS, "client", "metrics", "redis"])
@pytest.mark.parametrize("version", CLUSTERS)
def test_every_object_fits_the_schemas_of_kubernetes(name: str, version: str) -> None:
    checked = []
    for each in rendered(name):
        if not each["apiVersion"].startswith("keda.sh/"):
            kubernetes_validate.validate(each, version, strict=True)
            checked.append(each["kind"])

    assert ("StatefulSet" if name == "redis" else "Deployment") in checked
    assert {each["metadata"].get("namespace", "vdsr") for each in rendered(name)} == {"vdsr"}


def test_a_misspelt_field_would_be_found() -> None:
    wrong = {**one("cpu", "Deployment"), "spec": {**one("cpu", "Deployment")["spec"], "replica": 1}}

    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, CLUSTERS[0], strict=True)


@pytest.mark.parametrize("name", OVERLAYS)
def test_names_and_labels_lead_from_each_object_to_the_other(name: str) -> None:
    deployment, scaled = one(name, "Deployment"), one(name, "ScaledObject")

    assert scaled["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"] == f"worker-{name}"
    authentication = {trigger["authenticationRef"]["name"] for trigger in scaled["spec"]["triggers"]}
    assert authentication == {one(name, "TriggerAuthentication")["metadata"]["name"]}
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    for selector in (deployment["spec"]["selector"], one(name, "PodDisruptionBudget")["spec"]["selector"]):
        assert selector["matchLabels"].items() <= labels.items()
    allowed = one("redis", "NetworkPolicy")["spec"]["ingress"][0]["from"][0]["podSelector"]["matchLabels"]
    assert allowed.items() <= labels.items()
    source = container(name)["envFrom"][0]["configMapRef"]["name"]
    assert source == one(name, "ConfigMap")["metadata"]["name"]


def test_overlays_select_none_of_each_others_pods() -> None:
    selectors = [one(name, "Deployment")["spec"]["selector"]["matchLabels"] for name in OVERLAYS]
    labels = [one(name, "Deployment")["spec"]["template"]["metadata"]["labels"] for name in OVERLAYS]

    matches = [[selector.items() <= each.items() for each in labels] for selector in selectors]
    assert matches == [[True, False, False], [False, True, False], [False, False, True]]


@pytest.mark.parametrize("name", OVERLAYS)
def test_a_pod_is_killed_later_than_its_worker_stops_by_itself(name: str) -> None:
    pod = one(name, "Deployment")["spec"]["template"]["spec"]
    settings = load_settings(one(name, "ConfigMap")["data"])

    assert settings.grace_s >= 120
    assert pod["terminationGracePeriodSeconds"] >= settings.grace_s + 30
    assert pod["shareProcessNamespace"] is True


@pytest.mark.parametrize("name", OVERLAYS)
def test_probes_call_commands_and_options_that_there_are(name: str) -> None:
    probes = {kind: container(name)[f"{kind}Probe"]["exec"]["command"] for kind in ("startup", "liveness", "readiness")}

    assert probes["liveness"][:3] == ["vdsr", "health", "--live"]
    assert probes["readiness"][:3] == ["vdsr", "health", "--ready"]
    command = root.get_command(click.Context(root), "health")
    assert command is not None
    for words in probes.values():
        assert command.make_context("health", list(words[2:])).params["within"] == 300
    assert "VDSR_HEALTH_DIR" in {each["name"] for each in container(name)["env"]}


@pytest.mark.parametrize("name", [*OVERLAYS, "metrics"])
def test_whoever_serves_metrics_tells_prometheus_where(name: str) -> None:
    annotations = one(name, "Deployment")["spec"]["template"]["metadata"]["annotations"]
    (port,) = container(name)["ports"]

    assert annotations == {"prometheus.io/scrape": "true", "prometheus.io/port": str(port["containerPort"])}
    settings = {each["name"]: each.get("value") for each in container(name)["env"]}
    if name == "metrics":
        command = root.get_command(click.Context(root), "metrics")
        assert command is not None
        words = command.make_context("metrics", container(name)["args"][2:]).params
        assert (words["port"], words["host"]) == (port["containerPort"], "0.0.0.0")
    else:
        assert settings["VDSR_METRICS_PORT"] == str(port["containerPort"])


def test_a_client_takes_no_work_and_serves_nothing() -> None:
    template = one("client", "Deployment")["spec"]["template"]

    assert container("client")["args"] == ["sleep", "infinity"]
    assert "annotations" not in template["metadata"]
    assert not [each for each in rendered("client") if each["kind"] in ("PodDisruptionBudget", "ScaledObject")]


@pytest.mark.parametrize("name", OVERLAYS)
def test_no_secret_stands_in_a_file_and_no_pod_is_root(name: str) -> None:
    pod = one(name, "Deployment")["spec"]["template"]["spec"]
    given = {each["name"]: each for each in container(name)["env"]}

    for variable in ("VDSR_REDIS_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert set(given[variable]) == {"name", "valueFrom"}
        assert given[variable]["valueFrom"]["secretKeyRef"]["name"] == "vdsr"
    for spec in (pod, one("redis", "StatefulSet")["spec"]["template"]["spec"]):
        (each,) = spec["containers"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert each["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert each["resources"]["requests"]["memory"]
        assert each["resources"]["limits"]["memory"]


@pytest.mark.redis
def test_the_redis_of_the_cluster_keeps_what_it_holds_and_asks_for_the_password(tmp_path: Path) -> None:
    (each,) = one("redis", "StatefulSet")["spec"]["template"]["spec"]["containers"]
    (tmp_path / "redis.conf").write_text("requirepass secret-of-the-test")  # what the how-to puts into the secret
    stand_ins = {"/data": str(tmp_path), "/etc/valkey/users/redis.conf": str(tmp_path / "redis.conf")}
    server = find_server()
    assert server is not None
    words = [str(server), *(stand_ins.get(word, word) for word in [*each["command"][1:], *each["args"]])]
    port = free_ports(1, mirror_offset=0)[0]

    with guarded([*words, "--port", str(port)], log=tmp_path / "log"):
        client = redis.Redis(port=port, password="secret-of-the-test", decode_responses=True)
        wait_until(lambda: answers(client))
        settings = client.config_get("*")
        with pytest.raises(redis.AuthenticationError):
            redis.Redis(port=port).ping()

    kept = {name: settings[name] for name in ("appendonly", "appendfsync", "save", "maxmemory-policy", "dir")}
    assert kept == {
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "dir": str(tmp_path),
    }
    assert 0 < int(settings["maxmemory"]) < 1 << 30


def answers(client: redis.Redis) -> bool:
    """Whether a server is up."""
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


def test_cards_are_asked_for_where_there_are_some() -> None:
    for name, cards in (("cpu", None), ("gpu", "1"), ("train", "1")):
        assert container(name)["resources"]["limits"].get("nvidia.com/gpu") == cards
    assert one("gpu", "Deployment")["spec"]["template"]["spec"]["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert container("train")["args"][-3:] == ["train", "-n", "train@%h"]


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_scaled_object_has_only_fields_that_keda_knows(name: str) -> None:
    spec = one(name, "ScaledObject")["spec"]

    assert set(spec) <= SCALED_OBJECT
    assert set(spec["advanced"]) == {"scalingModifiers", "horizontalPodAutoscalerConfig"}
    assert set(spec["advanced"]["scalingModifiers"]) == {"formula", "target", "activationTarget", "metricType"}
    for trigger in spec["triggers"]:
        assert (trigger["type"], set(trigger["metadata"])) == ("redis", {"listName", "listLength"})
        assert all(isinstance(value, str) for value in trigger["metadata"].values())
    assert set(re.findall(r"[a-z]+", spec["advanced"]["scalingModifiers"]["formula"])) == {
        trigger["name"] for trigger in spec["triggers"]
    }


@pytest.fixture
def quiet_redis() -> Iterator[str]:
    """A real server that nobody else uses."""
    folder = Path(tempfile.mkdtemp(prefix="vdsr-"))  # short, for a socket's path
    with LocalRedis(folder) as server:
        yield server.url
    shutil.rmtree(folder)


def read_as_keda(redis_url: str, name: str) -> dict[str, int]:
    """What each trigger of an overlay reads: KEDA asks for a key's type, and for the length of that type."""
    client = RedisClient(redis_url)
    lengths = {"list": "llen", "zset": "zcard", "none": "llen"}
    return {
        trigger["name"]: int(client.do(lengths[client.do("type", key)], key))
        for trigger in one(name, "ScaledObject")["spec"]["triggers"]
        for key in [trigger["metadata"]["listName"]]
    }


def wanted(name: str, read: dict[str, int]) -> float:
    """The formula's value per pod's target: the number of pods that KEDA has the cluster run."""
    modifiers = one(name, "ScaledObject")["spec"]["advanced"]["scalingModifiers"]
    condition, _, branches = modifiers["formula"].partition(" ? ")
    yes, _, no = branches.partition(" : ")
    python = f"({yes}) if ({condition}) else ({no})" if branches else condition
    return -(-eval(python, {}, read) // int(modifiers["target"]))


@pytest.mark.redis
def test_the_triggers_read_the_whole_backlog_and_the_workers_at_work(quiet_redis: str) -> None:
    settings = load_settings({"VDSR_REDIS_URL": quiet_redis})
    queue, fleet = Queue(settings, make_app(settings)), Fleet(quiet_redis)
    assert read_as_keda(quiet_redis, "cpu") == {"waiting": 0, "again": 0, "busy": 0}

    for chunk in range(9):
        queue.upscale("job", chunk)
    for chunk in range(3):
        queue.upscale("job", chunk, again=True)
    queue.plan("job")
    queue.train("run")
    fleet.report_worker("one@a", [QUEUE], {QUEUE})
    fleet.report_worker("two@a", [QUEUE], {QUEUE})
    fleet.report_worker("idle@a", [QUEUE])
    fleet.report_worker("trainer@a", [TRAINING], {TRAINING})

    read = read_as_keda(quiet_redis, "cpu")
    assert read == {"waiting": 9, "again": 4, "busy": 2}
    assert read["waiting"] + read["again"] == fleet.queue_length(QUEUE)
    assert read_as_keda(quiet_redis, "gpu") == read
    assert read_as_keda(quiet_redis, "train") == {"waiting": 1, "busy": 1}


@pytest.mark.redis
def test_the_documented_permissions_of_keda_let_it_read_its_keys_and_nothing_else(quiet_redis: str) -> None:
    page = (FOLDER.parents[1] / "docs" / "howto" / "kubernetes.md").read_text()
    rules = re.search(r"^user keda on >PASSWORD (.*)$", page, re.M)
    assert rules
    redis.Redis.from_url(quiet_redis).execute_command("ACL", "SETUSER", "keda", "on", ">secret", *rules[1].split())
    keda = redis.Redis.from_url(quiet_redis, username="keda", password="secret")
    length = (
        "local kind = redis.call('type', KEYS[1]).ok; return redis.call(kind == 'zset' and 'zcard' or 'llen', KEYS[1])"
    )

    for name in OVERLAYS:
        for trigger in one(name, "ScaledObject")["spec"]["triggers"]:
            assert keda.eval(length, 1, trigger["metadata"]["listName"]) == 0
    for forbidden in (["LPUSH", "vdsr:upscale", "x"], ["TYPE", "vdsr:jobs"], ["KEYS", "*"], ["GET", "vdsr:upscale"]):
        with pytest.raises(redis.exceptions.NoPermissionError):
            keda.execute_command(*forbidden)


@pytest.mark.parametrize(
    ("waiting", "again", "busy", "pods"),
    [(0, 0, 0, 0), (1, 0, 0, 1), (0, 1, 0, 1), (40, 0, 0, 10), (30, 2, 8, 10), (0, 0, 10, 10), (0, 0, 3, 3)],
)
def test_there_is_a_worker_for_every_four_chunks_and_none_is_taken_from_its_work(
    waiting: int, again: int, busy: int, pods: int
) -> None:
    assert wanted("cpu", {"waiting": waiting, "again": again, "busy": busy}) == pods


def test_a_trainer_stays_for_as_long_as_it_trains() -> None:
    assert [wanted("train", {"waiting": w, "busy": b}) for w, b in ((0, 0), (1, 0), (0, 1), (1, 1))] == [0, 1, 1, 2]
