"""How fast is the network on this card, and how near to what the card can do? Side by side, in one run.

python benchmarks/gpu.py --json gpu.json

Each way takes the luminance from the host's memory and brings the residual back, with the same weights. The ways take
turns, so that a card that slows down slows all of them; medians are given. The ratio is to the eager way, fp32 in NCHW
over the whole image. The share is of the rate that the card reaches in this run with large matrix products in bf16,
counting what the network needs and not what halos add. The difference is to float64, in 8-bit code values.

Then whole pictures, x2, from 8-bit RGB to 8-bit RGB: with bicubic and colour on the host, on the card, and on the card
eight pictures at a time. Beside their MP/s stands how much of the time the card spends on the network, and how fast it
would be without one: what is left is copies, bicubic, colour and the host, and limits where it is the slower one.

All ways hold memory at the same time: on a card of less than 40 GB, measure some at a time by --only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from engine import PHOTOS, Way, by_engine, photographs, residual_in_float64
from PIL import Image

from vdsr import Upscaler, checkpoint
from vdsr.device import DeviceError, choose_device, describe
from vdsr.model import VDSR
from vdsr.resize import plan_bicubic
from vdsr.torch_engine import TorchEngine

MATRIX = 8192
"""Rows and columns of the matrix product."""
TOGETHER = 8
"""Pictures that are made at a time."""
KNOWN = 256
"""Pixels a side of the corner that is computed in float64."""


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", default=["1920x1080", "3840x2160"], help="width x height of the output")
    parser.add_argument("--device", default="cuda", help="cuda or cuda:N")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--only", nargs="*", help="these ways only")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    args = parser.parse_args()
    try:
        device = choose_device(args.device)
    except DeviceError as exc:
        print(f"there is no card to measure: {exc}")
        return
    if device.type != "cuda":
        print("there is no card to measure: give --device cuda or cuda:N; benchmarks/engine.py measures CPUs")
        return
    torch.cuda.set_device(device)
    model, _ = checkpoint.load()
    flop_s = matrix_rate(device)
    machine = describe(device)
    print(f"{machine['device']}, {flop_s / 1e12:.0f} TFLOP/s in products of {MATRIX} x {MATRIX} bf16 matrices")
    exact = residual_in_float64(model, photographs(KNOWN, KNOWN)[0])
    rows = [row for size in args.sizes for row in measure(model, device, size, args.only, args.rounds, exact, flop_s)]
    upscaler = Upscaler(device=str(device))
    pictures = [row for size in args.sizes for row in measure_pictures(upscaler, size, args.only, args.rounds)]
    if args.json:
        figures = {"machine": machine, "bf16_flop_s": flop_s, "rows": rows, "pictures": pictures}
        args.json.write_text(json.dumps(figures, indent=1))


def measure(
    model: VDSR, device: torch.device, size: str, only: list[str] | None, rounds: int, exact: np.ndarray, flop_s: float
) -> list[dict[str, Any]]:
    """All ways at one size, printed."""
    width, height = map(int, size.split("x"))
    y, _ = photographs(height, width)
    known, _ = photographs(KNOWN, KNOWN)
    seconds: dict[str, list[float]] = {}
    ways = {name: way for name, way in all_ways(model, device).items() if not only or name in only}
    for round_ in range(rounds + 3):  # the first find algorithms, capture and warm up
        for name, way in list(ways.items()):
            began = time.perf_counter()
            try:
                way(y)
            except RuntimeError as exc:  # a way that this card or torch cannot go must not end the others
                print(f"{size:>10} {name:32} left out: {str(exc).splitlines()[0][:100]}")
                del ways[name]
                continue
            if round_ >= 3:
                seconds.setdefault(name, []).append(time.perf_counter() - began)
    needed = 2 * sum(kernel.numel() for kernel in model.kernels) * y.size
    rows: list[dict[str, Any]] = []
    for name, way in ways.items():
        median = statistics.median(seconds[name])
        error = float(np.abs(way(known) - exact).max() * 255)
        row = {"size": size, "way": name, "seconds": median, "mp_s": y.size / median / 1e6, "error": error}
        rows.append(row | {"share": needed / median / flop_s, "fastest": min(seconds[name])})
        ratio = rows[0]["seconds"] / median
        print(
            f"{size:>10} {name:32} {row['mp_s']:8.2f} MP/s {ratio:6.2f} x {rows[-1]['share']:6.1%}   off by {error:.4f}"
        )
    return rows


def all_ways(model: VDSR, device: torch.device) -> dict[str, Way]:
    """Those of public implementations, ours, and what ours might do otherwise."""
    from vdsr.cuda import CudaExecutor

    def ours(dtype: torch.dtype, *, fused: bool = False, **options: Any) -> Way:
        executor = CudaExecutor(model.kernels, device, dtype, **options)
        if fused:
            executor.layers.hidden = in_one_kernel  # type: ignore[method-assign]
        return by_engine(TorchEngine(model, device, dtype, 0, executor=executor))

    ways = {
        "eager fp32": eager(model, device, tf32=False),
        "eager TF32, torch's default": eager(model, device, tf32=True),
        "vdsr fp32": ours(torch.float32),
    }
    if torch.cuda.get_device_capability(device) >= (8, 0):
        ways |= {
            "vdsr bf16": ours(torch.bfloat16),
            "vdsr bf16, without graphs": ours(torch.bfloat16, graphs=0),
            "vdsr bf16, cuDNN tuned": ours(torch.bfloat16, tune=True),
            "vdsr bf16, ReLU in cuDNN": ours(torch.bfloat16, fused=True),
            "vdsr bf16, both": ours(torch.bfloat16, fused=True, tune=True),
        }
    return ways


def eager(model: VDSR, device: torch.device, *, tf32: bool) -> Way:
    """What public implementations do."""
    on_card = VDSR(model.config).to(device)
    on_card.load_state_dict(model.state_dict())

    def run(y: np.ndarray) -> np.ndarray:
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=tf32):
            return on_card.residual(torch.from_numpy(y)[None, None].to(device))[0, 0].cpu().numpy()

    return run


def in_one_kernel(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Convolution and ReLU by cuDNN's fused operation."""
    return torch.cudnn_convolution_relu(x, weight, None, (1, 1), (1, 1), (1, 1), 1)


def measure_pictures(upscaler: Upscaler, size: str, only: list[str] | None, rounds: int) -> list[dict[str, Any]]:
    """All ways of whole pictures at one size, printed."""
    if not upscaler.engine.makes_pictures:
        print(f"{size:>10} no whole pictures on the card: its trial failed, see the warning")
        return []
    width, height = map(int, size.split("x"))
    photo = Image.open(next(path for path in sorted(PHOTOS.iterdir()) if path.suffix != ".md")).convert("RGB")
    image = np.asarray(photo.resize((width // 2, height // 2), Image.Resampling.BICUBIC))
    ways: dict[str, tuple[bool, int, Callable[[], object]]] = {
        "bicubic and colour on the host": (False, 1, lambda: upscaler.upscale(image)),
        "bytes to bytes on the card": (True, 1, lambda: upscaler.upscale(image)),
        f"{TOGETHER} at a time on the card": (True, TOGETHER, lambda: together(upscaler, image)),
    }
    rows = []
    for name, (on_card, count, way) in ways.items():
        if only and name not in only:
            continue
        upscaler.engine.makes_pictures = on_card
        pixels = 4 * image[..., 0].size * count
        with counted(upscaler) as network_s:
            seconds, of_network = timed(way, rounds, network_s)
        with idle(upscaler):
            without, _ = timed(way, rounds, list)
        share, bound = of_network / seconds, "the network" if without < of_network else "what is not the network"
        rows.append({"size": size, "way": name, "seconds": seconds, "mp_s": pixels / seconds / 1e6, "share": share})
        rows[-1] |= {"mp_s_without_network": pixels / without / 1e6, "limited_by": bound}
        print(
            f"{size:>10} {name:32} {rows[-1]['mp_s']:8.2f} MP/s, {share:6.1%} of the time in the network; without it "
            f"{rows[-1]['mp_s_without_network']:8.2f} MP/s: {bound} limits"
        )
    upscaler.engine.makes_pictures = True
    return rows


def together(upscaler: Upscaler, image: np.ndarray) -> None:
    """As many pictures in one call."""
    plan = plan_bicubic(image.shape[:2], scale=2)
    outs = [np.empty((*plan.size, 3), image.dtype) for _ in range(TOGETHER)]
    upscaler.engine.pictures([image] * TOGETHER, plan, outs, lambda: None)


def timed(way: Callable[[], object], rounds: int, network_s: Callable[[], list[float]]) -> tuple[float, float]:
    """Medians of a round's seconds, and of those that the network took of it."""
    seconds, of_network = [], []
    for round_ in range(rounds + 3):  # the first find algorithms, capture and warm up
        began = time.perf_counter()
        way()
        seconds.append(time.perf_counter() - began)
        of_network.append(sum(network_s()))
        if round_ < 3:
            seconds.clear()
            of_network.clear()
    return statistics.median(seconds), statistics.median(of_network)


@contextmanager
def counted(upscaler: Upscaler) -> Iterator[Callable[[], list[float]]]:
    """What gives the seconds of each stack since it was asked last, on the card's own clock."""
    executor = upscaler.engine.executor
    run, events = executor._run, []

    def measured(y: torch.Tensor, exact: bool) -> torch.Tensor:
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        residual = run(y, exact)
        ended.record()
        events.append((began, ended))
        return residual

    def seconds() -> list[float]:
        taken = [began.elapsed_time(ended) / 1000 for began, ended in events]
        events.clear()
        return taken

    executor._run = measured
    try:
        yield seconds
    finally:
        executor._run = run


@contextmanager
def idle(upscaler: Upscaler) -> Iterator[None]:
    """A network that adds nothing and takes no time."""
    executor = upscaler.engine.executor
    run = executor._run
    executor._run = lambda y, exact: torch.zeros_like(y)
    try:
        yield
    finally:
        executor._run = run


def matrix_rate(device: torch.device) -> float:
    """FLOP/s of large matrix products in bf16."""
    a, b = (torch.randn(MATRIX, MATRIX, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for round_ in range(23):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        a @ b
        ended.record()
        ended.synchronize()
        if round_ >= 3:
            seconds.append(began.elapsed_time(ended) / 1000)
    return 2 * MATRIX**3 / statistics.median(seconds)


if __name__ == "__main__":
    main()
