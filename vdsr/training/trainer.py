"""What is one step of training, and what must be kept so that it can go on after a kill?

Section 3.3 of the paper: the network learns the residual between the true luminance and its bicubic restoration.
The state is the whole of it: weights, their average, optimiser, and step; the schedule and the data follow from
the step. On one machine, a run that was killed and resumed gives the same weights as one that was not.
"""

from __future__ import annotations

import io
import math
import pickle
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vdsr.data import FULL, Picture
from vdsr.device import cpu_computes_bf16, cpu_has_amx
from vdsr.errors import CheckpointError, StateDamaged, StateMismatch, TrainingError
from vdsr.evaluate import code_values
from vdsr.metrics import psnr_y
from vdsr.model import VDSR, VDSRConfig
from vdsr.native import Library, library
from vdsr.training.native import NativeVDSR
from vdsr.training.optimiser import clip, learning_rate, make_optimisers
from vdsr.training.recipe import Recipe

WINDOW = 256
"""Side in pixels of the centre that validation looks at: all of it would cost more than the training between."""


class Trainer:
    """One process of a run: its network, optimiser and averaged weights, and where it is."""

    def __init__(
        self,
        recipe: Recipe,
        device: torch.device,
        *,
        compiled: bool = False,
        native: bool = True,
        start: VDSR | None = None,
    ) -> None:
        """
        Args:
            compiled: use torch.compile; needs a C++ compiler on the CPU.
            native: use our own compiled code (`vdsr.native`) where it is the fastest; not with `compiled`.
            start: weights to begin with, instead of random ones.
        """
        if device.type == "cuda":  # a resumed run is to give the same weights, and fp32 is to be fp32
            torch.backends.cudnn.deterministic = True
            torch.backends.cudnn.allow_tf32 = False
        torch.manual_seed(recipe.seed)
        self.recipe, self.device = recipe, device
        self.rank, self.world = (
            (torch.distributed.get_rank(), torch.distributed.get_world_size())
            if torch.distributed.is_initialized()
            else (0, 1)
        )
        if recipe.batch % self.world:
            raise TrainingError(f"batch is {recipe.batch}; it must be a multiple of the {self.world} processes")
        self.step = 0
        self.model = VDSR(VDSRConfig())
        if start is not None:
            if start.config != self.model.config:
                raise CheckpointError(f"the weights to begin with are of {start.config}; give {self.model.config}")
            self.model.load_state_dict(start.state_dict())
        self.model.to(device)
        for kernel in self.model.kernels:
            kernel.data = kernel.data.contiguous(memory_format=torch.channels_last)
        self.average = VDSR(VDSRConfig()).to(device).requires_grad_(False)
        self.average.load_state_dict(self.model.state_dict())
        self.optimisers = make_optimisers(self.model.kernels, recipe)
        compiled_here = _native(device, recipe.precision) if native and not compiled else None
        self.native = compiled_here.variant if compiled_here else ""
        self.bf16 = (
            computes_bf16(device) and not self.native if recipe.precision == "auto" else recipe.precision == "bf16"
        )
        self._forward: Any = NativeVDSR(self.model, compiled_here) if compiled_here else self.model
        if compiled:
            self._forward = torch.compile(self.model)
        if self.world > 1:
            ids = [device.index] if device.type == "cuda" else None
            self._forward = nn.parallel.DistributedDataParallel(self._forward, device_ids=ids)

    @property
    def result(self) -> VDSR:
        """The weights that the run is for."""
        return self.average if self.recipe.ema else self.model

    def train_step(self, low: np.ndarray, high: np.ndarray) -> Tensor:
        """Learn from a batch.

        Args:
            low, high: (N, 1, H, W) float32 in [0, 1], this process's share of the batch.

        Returns:
            The loss as a scalar on the device: reading it makes the caller wait for the device. Its scale is the
            recipe's loss on 8-bit code values (l1), or on [0, 1] (l2).
        """
        rate = learning_rate(self.recipe, self.step)
        y, target = (
            torch.from_numpy(np.ascontiguousarray(a)).to(self.device, memory_format=torch.channels_last)
            for a in (low, high)
        )
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            restored = self._forward(y)
        loss, told = self._loss(restored.float() - target)
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)
            for group in optimiser.param_groups:
                group["lr"] = rate * group["share"]
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        clip(self.model.kernels, self.recipe, rate)
        for optimiser in self.optimisers:
            optimiser.step()
        self.step += 1
        self._follow()
        told = told.detach()
        if self.world > 1:
            torch.distributed.all_reduce(told)  # so that all of them see a loss that is no number
            told /= self.world
        return told

    def state(self) -> bytes:
        """Everything that `restore` needs."""
        buffer = io.BytesIO()
        torch.save(
            {
                "recipe": self.recipe.to_dict(),
                "step": self.step,
                "model": self.model.state_dict(),
                "average": self.average.state_dict(),
                "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            },
            buffer,
        )
        return buffer.getvalue()

    def restore(self, data: bytes) -> None:
        """Go on from a saved state.

        Raises:
            StateMismatch: it was saved with another recipe.
            StateDamaged: it is none.
        """
        try:
            # On the CPU first: each optimiser moves what it wants on the device, and Adam counts its steps on the CPU.
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            theirs = Recipe.from_dict(state["recipe"])
        except (RuntimeError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as exc:
            raise StateDamaged("state.pt", str(exc).partition("\n")[0]) from exc
        if changed := [
            key for key in _decisive(self.recipe, theirs, state["step"]) if _differ(self.recipe, theirs, key)
        ]:
            raise StateMismatch(
                f"the saved state, of step {state['step']:,}, has other values of {', '.join(changed)}"
                f"{_WHY if set(changed) <= _STRETCHABLE else ''}; train in another folder, or with "
                + ", ".join(f"{key}={getattr(theirs, key)}" for key in changed)
            )
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)

    def _loss(self, error: Tensor) -> tuple[Tensor, Tensor]:
        """What is minimised, and what is told."""
        if self.recipe.loss == "l1":
            loss = error.abs().mean()
            return loss, loss * 255
        loss = error.square().sum() / (2 * len(error))  # the paper's 1/2 ||r - f(x)||^2, a patch
        return loss, loss

    @torch.no_grad()
    def _follow(self) -> None:
        if not self.recipe.ema:
            return
        # Early on the average must not remember the random start: its window grows with the run.
        decay = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.average.kernels, self.model.kernels, 1 - decay)


_STRETCHABLE = {"steps", "decay_steps"}
_WHY = ", which may change only until the learning rate begins to fall"


def _decisive(mine: Recipe, theirs: Recipe, step: int) -> list[str]:
    """What must be as it was when a run goes on: all that its steps up to here depended on."""
    free = {"name", "validate_every"}
    if mine.schedule == "linear" and all(step <= r.steps - r.decay_steps for r in (mine, theirs)):
        free |= _STRETCHABLE  # still on the level: it may be made longer or shorter
    return [field.name for field in fields(Recipe) if field.name not in free]


def _differ(mine: Recipe, theirs: Recipe, key: str) -> bool:
    return bool(getattr(mine, key) != getattr(theirs, key))


def computes_bf16(device: torch.device) -> bool:
    """Whether bf16 is arithmetic of the device, not an emulation that is slower than fp32."""
    return torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else cpu_computes_bf16()


def _native(device: torch.device, precision: str) -> Library | None:
    """Our compiled fp32 code where it is the fastest that gives this precision: on all CPUs but those with AMX."""
    if device.type != "cpu" or precision == "bf16" or (precision == "auto" and cpu_has_amx()):
        return None
    return library()


@torch.no_grad()
def validate(model: VDSR, pictures: list[Picture], *, exact: bool = False) -> dict[float, tuple[float, float]]:
    """Mean PSNR-Y in dB at each scale, of bicubic and of the network, on the pictures' centres.

    Args:
        exact: compute in fp32, as workers do; otherwise in bf16 where the device has it, which is faster and costs a
            few hundredths of a dB.
    """
    bf16 = not exact and computes_bf16(next(model.parameters()).device)
    device = next(model.parameters()).device
    figures = {}
    for scale in sorted(pictures[0].scales):
        rows = []
        for picture in pictures:
            window = tuple(slice(max(0, n // 2 - WINDOW // 2), n // 2 + WINDOW // 2) for n in picture.hr.shape)
            low = picture.bicubic[scale][window].astype(np.float32) / FULL
            high = code_values(picture.hr[window] / FULL)
            y = torch.from_numpy(low)[None, None].to(device, memory_format=torch.channels_last)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                residual = model.residual(y).float()
            sr = code_values((y + residual)[0, 0].cpu().numpy())
            shave = math.ceil(scale)
            rows.append((psnr_y(code_values(low), high, shave=shave), psnr_y(sr, high, shave=shave)))
        telling = [
            row for row in rows if np.isfinite(row).all()
        ]  # a flat picture is restored exactly, and tells nothing
        bicubic_db, model_db = np.mean(telling or rows, axis=0)
        figures[scale] = (float(bicubic_db), float(model_db))
    return figures
