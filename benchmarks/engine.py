"""How fast is the network, and at what cost in precision, against what else there is? Side by side, in one run.

pip install onnxruntime onnx openvino     # those that are missing are left out
python benchmarks/engine.py --size 1920x1080 --json engine.json

Each way computes the residual of the same luminance with the same weights. The ways take turns, so that a machine
that slows down slows all of them; medians are given, and ratios to the eager way: fp32 in NCHW over the whole image,
layer by layer, as every public VDSR does it. The error is the largest difference to float64, in 8-bit code values;
dB are PSNR-Y of the photographs restored at x4, against the eager way.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vdsr import Upscaler, checkpoint
from vdsr.device import describe
from vdsr.engine import Engine, whole
from vdsr.evaluate import luminance
from vdsr.model import VDSR
from vdsr.resize import bicubic

PHOTOS = Path(__file__).parents[1] / "examples" / "photos"
Way = Callable[[np.ndarray], np.ndarray]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="1920x1080", help="width x height of the output")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", help="these ways only")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    args = parser.parse_args()
    width, height = map(int, args.size.split("x"))
    y, hr = photographs(height, width)
    model, _ = checkpoint.load()
    ways = {name: way for name, way in all_ways(model, y.shape).items() if not args.only or name in args.only}
    exact = residual_in_float64(model, y[:512, :512])
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(args.rounds + 1):  # the first warms up
        for name, way in ways.items():
            began = time.perf_counter()
            way(y)
            if round_:
                seconds[name].append(time.perf_counter() - began)
    rows: list[dict[str, Any]] = []
    for name, way in ways.items():
        median = statistics.median(seconds[name])
        inside = np.s_[: 512 - 20, : 512 - 20]  # what does not see beyond the part that is known exactly
        residual = way(y)
        error = np.abs(residual[inside].astype(np.float64) - exact[inside]) * 255
        psnr = 10 * np.log10(1 / np.mean((np.clip(y + residual, 0, 1).astype(np.float64) - hr) ** 2))
        rows.append(
            {
                "way": name,
                "seconds": median,
                "mp_s": y.size / median / 1e6,
                "error": float(error.max()),
                "psnr_y": float(psnr),
                "lost_db": float(rows[0]["psnr_y"] - psnr) if rows else 0.0,
            }
        )
    report(rows, args.size, args.json)


def all_ways(model: VDSR, shape: tuple[int, int]) -> dict[str, Way]:
    """Those that this machine has."""
    ways: dict[str, Way] = {"eager fp32": eager(model)}
    for name, precision, kind in (("torch tiled fp32", "fp32", "torch"), ("torch tiled bf16", "bf16", "torch")):
        ways[name] = by_engine(Upscaler(device="cpu", precision=precision, engine=kind).engine)
    for precision in ("fp32", "auto"):  # one and the same without AMX
        ours = Upscaler(device="cpu", precision=precision).engine
        ways[f"vdsr: {ours.name}"] = by_engine(ours)
    if importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnx"):
        ways["ONNX Runtime fp32"] = onnx_runtime(model)
    if importlib.util.find_spec("openvino"):
        for precision in ("f32", "bf16"):
            ways[f"OpenVINO {precision}"] = openvino(model, shape, precision)
    return ways


def eager(model: VDSR) -> Way:
    """What public implementations do."""

    def run(y: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model.residual(torch.from_numpy(y)[None, None])[0, 0].numpy()

    return run


def by_engine(engine: Engine) -> Way:
    """One of ours."""
    return lambda y: whole(engine, y, lambda: None)


def onnx_runtime(model: VDSR) -> Way:
    """ONNX Runtime on the exported graph."""
    import onnxruntime

    session = onnxruntime.InferenceSession(exported(model), providers=["CPUExecutionProvider"])
    return lambda y: session.run(None, {"y": y[None, None]})[0][0, 0]


def openvino(model: VDSR, shape: tuple[int, int], precision: str) -> Way:
    """OpenVINO on the exported graph, compiled for the very size."""
    import openvino as ov

    core = ov.Core()
    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        file.write(exported(model))
        file.flush()
        graph = core.read_model(file.name)
    graph.reshape([1, 1, *shape])
    compiled = core.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": precision})
    return lambda y: compiled(y[None, None])[0][0, 0]


def exported(model: VDSR) -> bytes:
    """The network as an ONNX graph, made by hand: twenty convolutions need no exporter."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes, weights, name = [], [], "y"
    for index, kernel in enumerate(model.kernels):
        weights.append(numpy_helper.from_array(kernel.detach().numpy(), f"w{index}"))
        last = index == len(model.kernels) - 1
        out = "residual" if last else f"c{index}"
        nodes.append(helper.make_node("Conv", [name, f"w{index}"], [out], pads=[1, 1, 1, 1], kernel_shape=[3, 3]))
        if not last:
            nodes.append(helper.make_node("Relu", [out], [f"x{index}"]))
        name = f"x{index}"
    plane = [1, 1, "height", "width"]
    graph = helper.make_graph(
        nodes,
        "vdsr",
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, plane)],
        [helper.make_tensor_value_info("residual", TensorProto.FLOAT, plane)],
        weights,
    )
    buffer = io.BytesIO()
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), buffer)
    return buffer.getvalue()


def residual_in_float64(model: VDSR, y: np.ndarray) -> np.ndarray:
    """The truth."""
    exact = VDSR(model.config).double()
    exact.load_state_dict(model.state_dict())
    with torch.no_grad():
        return exact.residual(torch.from_numpy(y).double()[None, None])[0, 0].numpy()


def photographs(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Luminance of the example photographs, side by side: shrunk by 4 and enlarged again, and as it was."""
    canvas, side = Image.new("RGB", (width, height)), 320
    sources = [Image.open(path).convert("RGB") for path in sorted(PHOTOS.iterdir()) if path.suffix != ".md"]
    for n, (top, left) in enumerate((t, x) for t in range(0, height, side) for x in range(0, width, side)):
        source = sources[n % len(sources)]
        corner = (n * 53 % max(1, source.width - side), n * 29 % max(1, source.height - side))
        canvas.paste(source.crop((*corner, corner[0] + side, corner[1] + side)), (left, top))
    hr = luminance(np.asarray(canvas))
    y = bicubic(bicubic(hr.astype(np.float64), scale=1 / 4), size=(height, width)) / 255
    return y.astype(np.float32), hr / 255


def report(rows: list[dict[str, Any]], size: str, path: Path | None) -> None:
    """As a table, and as JSON."""
    machine = describe(torch.device("cpu"))
    print(f"{size} on {machine['device']}, {machine['threads']} threads")
    base = rows[0]["seconds"]
    for row in rows:
        row["ratio"] = base / row["seconds"]
        print(
            f"{row['way']:28} {row['mp_s']:6.3f} MP/s {row['ratio']:6.2f} x   "
            f"off by {row['error']:.4f}, {row['lost_db']:+.4f} dB lost"
        )
    if path:
        path.write_text(json.dumps({"machine": machine, "size": size, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
