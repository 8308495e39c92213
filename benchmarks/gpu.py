"""How fast is the network on this card, and how near to what the card can do? Side by side, in one run.

python benchmarks/gpu.py --json gpu.json

Each way takes the luminance from the host's memory and brings the residual back, with the same weights. The ways take
turns, so that a card that slows down slows all of them; medians are given. The ratio is to the eager way, fp32 in NCHW
over the whole image. The share is of the rate that the card reaches in this run with large matrix products in bf16,
counting what the network needs and not what halos add. The difference is to float64, in 8-bit code values. All ways
hold memory at the same time: on a card of less than 40 GB, measure some at a time by --only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from engine import Way, by_engine, residual_in_float64, test_picture

from vdsr import checkpoint
from vdsr.device import DeviceError, choose_device, describe
from vdsr.model import VDSR
from vdsr.torch_engine import TorchEngine

MATRIX = 8192
"""Rows and columns of the matrix product."""
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
    exact = residual_in_float64(model, test_picture(KNOWN, KNOWN))
    rows = [row for size in args.sizes for row in measure(model, device, size, args.only, args.rounds, exact, flop_s)]
    if args.json:
        args.json.write_text(json.dumps({"machine": machine, "bf16_flop_s": flop_s, "rows": rows}, indent=1))


def measure(
    model: VDSR, device: torch.device, size: str, only: list[str] | None, rounds: int, exact: np.ndarray, flop_s: float
) -> list[dict[str, Any]]:
    """All ways at one size, printed."""
    width, height = map(int, size.split("x"))
    y = test_picture(height, width)
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
        error = float(np.abs(way(test_picture(KNOWN, KNOWN)) - exact).max() * 255)
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
