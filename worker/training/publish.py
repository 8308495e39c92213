"""What becomes of a finished run? A report beside it, and, if asked for, a version that has to earn production.

A version is promoted if, on the run's validation images, it beats bicubic and the model in production at every scale.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from vdsr import checkpoint, smoke
from vdsr.errors import CheckpointError
from vdsr.training.run import WEIGHTS
from vdsr.training.trainer import validate
from vdsr.upscale import Upscaler
from worker.errors import NotFound, TransientError
from worker.fleet import Fleet
from worker.registry import CANDIDATE, PRODUCTION, Alias, AliasMoved, Registry, Version
from worker.settings import Settings
from worker.signing import Untrusted
from worker.training.runs import Run
from worker.training.work import Trained

TRIES = 5
"""Against other publishers that move an alias between our look and our change."""

Figures = dict[float, tuple[float, float]]
"""Scale -> dB of bicubic and of a network."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Verdict:
    """What became of a publication."""

    version: str
    promoted: bool
    reason: str


def conclude(run: Run, trained: Trained, settings: Settings, fleet: Fleet | None) -> dict[str, Any]:
    """Publish a finished run if it asks for that; what there is to tell, as plain JSON.

    Args:
        fleet: who to tell of a promotion; None where there is no Redis.
    """
    result = trained.result
    told: dict[str, Any] = {
        "version": result.identity.version,
        "sha256": result.identity.sha256,
        "folder": run.folder,
        "left_out": len(trained.data.manifest["left_out"]),
        "seconds": round(result.seconds, 1),
        "psnr_y": figures_json(result.psnr_y),
    }
    if run.publish:
        weights = trained.store.read(WEIGHTS)
        told["publication"] = asdict(
            publish_run(weights, result.identity.version, result.psnr_y, trained, settings, fleet, force=run.force)
        )
    return told


def publish_run(
    weights: bytes,
    name: str,
    figures: Figures,
    trained: Trained,
    settings: Settings,
    fleet: Fleet | None,
    *,
    force: bool = False,
) -> Verdict:
    """Publish weights, and promote them if they are better than what is in production.

    Args:
        figures: of these weights in fp32 on the run's validation images, as production's are measured here.
    """
    registry = Registry(settings)
    metrics = {
        "psnr_y": figures_json(figures),
        "validation": trained.data.validation_digest,
    }
    version = publish(registry, weights, name=name, metrics=metrics)
    for _ in range(TRIES):
        over = registry.alias(PRODUCTION)
        if over is not None and over.sha256 == version.sha256:
            return Verdict(version.name, True, "it is in production already")
        try:
            registry.signer(version)
        except Untrusted as exc:
            _point_candidate(registry, version)
            return Verdict(version.name, False, str(exc))
        reason = shortfall(figures, *_incumbent(registry, over, trained))
        if reason and not force:
            _point_candidate(registry, version)
            return Verdict(version.name, False, reason)
        with suppress(AliasMoved):  # somebody else was faster: judge again by what is in production now
            alias = registry.promote(version, over=over)
            announce(fleet, alias)
            return Verdict(version.name, True, f"by --force, although {reason}" if reason else "it is better")
    raise AliasMoved(f"{PRODUCTION} kept changing; {version.name} is published, see 'vdsr models promote'")


def publish(registry: Registry, weights: bytes, *, name: str, metrics: dict[str, Any]) -> Version:
    """Try weights in fp32 on the CPU, and add them to the registry with what they make of the known tile.

    Raises:
        CheckpointError: they cannot be loaded.
    """
    upscaler = Upscaler(weights, device="cpu", precision="fp32")
    return registry.publish(weights, name=name, smoke=smoke.record(upscaler), metrics=metrics)


def announce(fleet: Fleet | None, alias: Alias) -> None:
    """Tell the workers of a promotion, as far as Redis can be reached: a sweeper tells them later if not."""
    if fleet is None:
        return
    try:
        fleet.announce(alias.serial, alias.version)
    except TransientError as exc:
        log.warning("%s is promoted; workers learn it within a minute of Redis' return: %s", alias.version, exc)


def figures_json(figures: Figures) -> dict[str, dict[str, float]]:
    """Figures as ledger, registry and `--json` have them."""
    return {str(scale): {"bicubic": bicubic, "vdsr": vdsr} for scale, (bicubic, vdsr) in figures.items()}


def shortfall(figures: Figures, incumbent: Figures, name: str) -> str:
    """Why a model should not take the incumbent's place; empty if it is better everywhere."""
    if not figures:
        return "it was never validated"
    for scale, (bicubic, vdsr) in sorted(figures.items()):
        if not vdsr > bicubic:
            return f"at x{scale} its {vdsr:.3f} dB are not above bicubic's {bicubic:.3f}"
        if scale in incumbent and not vdsr > incumbent[scale][1]:
            return f"at x{scale} its {vdsr:.3f} dB are not above the {incumbent[scale][1]:.3f} of {name}"
    return ""


def _incumbent(registry: Registry, alias: Alias | None, trained: Trained) -> tuple[Figures, str]:
    """What is in production, or ships, on the same validation images."""
    try:
        if alias is None:
            model, identity = checkpoint.load()
        else:
            version = registry.version(alias.version)
            model, identity = checkpoint.parse(registry.weights(version), version.name)
    except (CheckpointError, NotFound) as exc:  # what nobody can use any more has no claim to its place
        log.warning("the model in production cannot be used: %s", exc)
        return {}, "nothing"
    return validate(model.to(trained.device), list(trained.data.validation), exact=True), identity.version


def _point_candidate(registry: Registry, version: Version) -> None:
    for _ in range(TRIES):
        with suppress(AliasMoved):
            registry.promote(version, over=registry.alias(CANDIDATE), alias=CANDIDATE)
            return
