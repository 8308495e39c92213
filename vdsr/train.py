"""How are the weights made? `python -m vdsr.train --data DIR --out RUN` trains one network for several scales.

Section 3.3 of the paper with what has been learnt since: Adam instead of SGD with clipping, L1 instead of L2,
cosine decay instead of steps, an exponential moving average of the weights, bf16 where the processor computes it.
A run can be killed at any step: started again with the same arguments, it goes on from its last state.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vdsr import checkpoint
from vdsr.data import FULL, Patches, Picture, batches, image_paths, prepare
from vdsr.device import cpu_computes_bf16
from vdsr.evaluate import code_values
from vdsr.metrics import psnr_y
from vdsr.model import VDSR, VDSRConfig


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the weights, beside the data."""

    steps: int = 20_000
    batch: int = 16
    patch: int = 64
    """Side in pixels; the paper's 41 leaves one output pixel that sees its whole neighbourhood."""
    scales: tuple[int, ...] = (2, 3, 4)
    learning_rate: float = 1e-3
    warmup: int = 500
    clip_norm: float = 0.1
    """Largest gradient norm; without it Adam at 1e-3 diverges in the first hundreds of steps."""
    ema: float = 0.999
    seed: int = 0


class NonFiniteLoss(RuntimeError):
    """Training diverged; the last saved state is from before it did."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step

    def __str__(self) -> str:
        return f"the loss is not a finite number at step {self.step}; lower --learning-rate and start a new run"


class Trainer:
    """One run: its network, optimiser and averaged weights, and where it is."""

    def __init__(self, config: TrainConfig, *, compiled: bool) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.step = 0
        self.model = VDSR(VDSRConfig())
        for kernel in self.model.kernels:
            kernel.data = kernel.data.contiguous(memory_format=torch.channels_last)
        self.average = VDSR(VDSRConfig()).requires_grad_(False)
        self.average.load_state_dict(self.model.state_dict())
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=config.learning_rate)
        self.residual = torch.compile(self.model.residual) if compiled else self.model.residual
        self.bf16 = cpu_computes_bf16()

    def train_step(self, low: np.ndarray, high: np.ndarray) -> float:
        """One step of Adam on a batch; returns its L1 loss in 8-bit code values."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate(self.step)
        y, target = (torch.from_numpy(a).to(memory_format=torch.channels_last) for a in (low, high))
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            residual = self.residual(y)
        loss: Tensor = nn.functional.l1_loss(residual.float(), target - y)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise NonFiniteLoss(self.step)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.optimiser.step()
        self.step += 1
        self._follow()
        return value * 255

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then half a cosine down to a hundredth."""
        c = self.config
        if step < c.warmup:
            return c.learning_rate * (step + 1) / c.warmup
        done = (step - c.warmup) / max(1, c.steps - c.warmup)
        return c.learning_rate * (0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2)

    @torch.no_grad()
    def _follow(self) -> None:
        # Early on the average must not remember the random start: its window grows with the run.
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        for mean, live in zip(self.average.parameters(), self.model.parameters(), strict=True):
            mean.lerp_(live, 1 - decay)

    def save(self, path: Path) -> None:
        """Write the whole state, atomically."""
        temporary = path.with_suffix(".tmp")
        torch.save(
            {
                "config": dataclasses.asdict(self.config),
                "step": self.step,
                "model": self.model.state_dict(),
                "average": self.average.state_dict(),
                "optimiser": self.optimiser.state_dict(),
            },
            temporary,
        )
        os.replace(temporary, path)

    def restore(self, path: Path) -> None:
        """Go on from a saved state of the same configuration."""
        state = torch.load(path, map_location="cpu", weights_only=True)
        mine = json.loads(json.dumps(dataclasses.asdict(self.config)))
        theirs = json.loads(json.dumps(state["config"]))
        if mine != theirs:
            changed = sorted(name for name in mine if mine[name] != theirs.get(name))
            raise ValueError(f"{path} was trained with other values of {', '.join(changed)}; choose another --out")
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])


@torch.no_grad()
def validate(model: VDSR, pictures: list[Picture]) -> dict[int, tuple[float, float]]:
    """Mean PSNR in dB for each scale, of bicubic and of the network, on the pictures' 256 x 256 centres."""
    figures = {}
    for scale in sorted(pictures[0].bicubic):
        rows = []
        for picture in pictures:
            window = tuple(slice(max(0, n // 2 - 128), n // 2 + 128) for n in picture.hr.shape)
            low = picture.bicubic[scale][window].astype(np.float32) / FULL
            high = code_values(picture.hr[window] / FULL)
            y = torch.from_numpy(low)[None, None].to(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=cpu_computes_bf16()):
                residual = model.residual(y).float()
            sr = code_values((y + residual)[0, 0].numpy())
            rows.append((psnr_y(code_values(low), high, shave=scale), psnr_y(sr, high, shave=scale)))
        bicubic_db, model_db = np.mean(rows, axis=0)
        figures[scale] = (float(bicubic_db), float(model_db))
    return figures


def main(argv: list[str] | None = None) -> int:
    """Train, and leave RUN/vdsr.safetensors (the averaged weights), RUN/state.pt and RUN/log.jsonl."""
    args = _arguments(argv)
    config = TrainConfig(
        steps=args.steps, batch=args.batch, patch=args.patch, learning_rate=args.learning_rate, seed=args.seed
    )
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    train, held = _split([path for folder in args.data for path in image_paths(folder)], args.validation)
    _say(f"reading {len(train)} images, {len(held)} more for validation")
    patches = Patches(
        [prepare(path, config.scales) for path in train], patch=config.patch, batch=config.batch, seed=config.seed
    )
    validation = [prepare(path, config.scales) for path in held]
    trainer = Trainer(config, compiled=args.compile)
    state = args.out / "state.pt"
    if state.exists():
        trainer.restore(state)
        _say(f"resuming at step {trainer.step} of {config.steps}")
    _run(trainer, patches, validation, args)
    notes = {
        "trained_steps": str(config.steps),
        "config": json.dumps(dataclasses.asdict(config)),
        "command": "python -m vdsr.train " + " ".join(argv if argv is not None else sys.argv[1:]),
    }
    identity = checkpoint.save(trainer.average, args.out / "vdsr.safetensors", version=args.version, notes=notes)
    _say(f"{args.out / 'vdsr.safetensors'}: version {identity.version}, SHA-256 {identity.sha256}")
    return 0


def _run(trainer: Trainer, patches: Patches, validation: list[Picture], args: argparse.Namespace) -> None:
    started = saved = time.monotonic()
    first, losses = trainer.step, []
    for step, low, high in batches(patches, trainer.step, trainer.config.steps):
        losses.append(trainer.train_step(low, high))
        if time.monotonic() - saved > 60 or trainer.step == trainer.config.steps:
            trainer.save(args.out / "state.pt")
            saved = time.monotonic()
        if trainer.step % args.report == 0 or trainer.step == trainer.config.steps:
            row = {
                "step": trainer.step,
                "loss": round(sum(losses) / len(losses), 4),
                "learning_rate": trainer.learning_rate(step),
                "seconds_per_step": round((time.monotonic() - started) / (trainer.step - first), 4),
                "psnr_y": {s: [round(v, 3) for v in pair] for s, pair in validate(trainer.average, validation).items()},
            }
            losses.clear()
            with (args.out / "log.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
            _say(json.dumps(row))


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m vdsr.train", description=__doc__)
    defaults = TrainConfig()
    parser.add_argument("--data", type=Path, action="append", required=True, help="folder of HR images; repeatable")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; an unfinished run there goes on")
    parser.add_argument("--version", default="untitled", help="name of the weights, kept in their header")
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--batch", type=int, default=defaults.batch)
    parser.add_argument("--patch", type=int, default=defaults.patch)
    parser.add_argument("--learning-rate", type=float, default=defaults.learning_rate)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--validation", type=int, default=12, help="images kept aside, spread over the sorted list")
    parser.add_argument("--report", type=int, default=500, help="steps between validations")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--compile", action="store_true", help="use torch.compile: 1.2 to 2 times faster, needs g++")
    return parser.parse_args(argv)


def _split(paths: list[Path], held: int) -> tuple[list[Path], list[Path]]:
    """Every n-th path is kept aside, so that each folder gives its share."""
    if len(paths) <= held:
        raise SystemExit(f"{len(paths)} images found; training needs more than the {held} kept for validation")
    chosen = {paths[(2 * i + 1) * len(paths) // (2 * held)] for i in range(held)}
    return [path for path in paths if path not in chosen], sorted(chosen)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
