"""How good are the weights that ship? Every set and scale, plain and as self-ensemble, into README and model card.

python benchmarks/figures.py ../shared/data/test      # an hour on two cores, most of it the self-ensemble
python benchmarks/figures.py                          # only writes the tables again

By the literature's protocol (docs/protocol.md), in fp32. Bicubic and the paper's figures stand beside ours.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vdsr import Upscaler
from vdsr.data import image_paths
from vdsr.device import describe
from vdsr.evaluate import Comparison, Score, mean_comparison, score_degraded
from vdsr.pillow import to_array

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results/figures.json"
SETS = ("Set5", "Set14", "BSD100")
WHOLE, FRACTIONS = (2.0, 3.0, 4.0), (1.5, 2.5, 3.5)
PAPER = {  # Kim et al., CVPR 2016, table 2; bicubic's are reproduced here
    "Set5": ((37.53, 0.9587), (33.66, 0.9213), (31.35, 0.8838)),
    "Set14": ((33.03, 0.9124), (29.77, 0.8314), (28.01, 0.7674)),
    "BSD100": ((31.90, 0.8960), (28.82, 0.7976), (27.29, 0.7251)),
}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="with Set5, Set14 and BSD100")
    parser.add_argument("--ensemble", nargs="*", default=SETS, help="the sets to measure the self-ensemble on too")
    parser.add_argument("--weights", type=Path, help="others than those that ship")
    args = parser.parse_args()
    if args.folder:
        RESULTS.write_text(json.dumps(measured(args.folder, args.ensemble, args.weights), indent=1) + "\n")
    rows = json.loads(RESULTS.read_text())["rows"]
    put(ROOT / "README.md", "figures", table(rows, WHOLE, ("bicubic", "paper", "vdsr")))
    put(ROOT / "docs/model-card.md", "figures", table(rows, WHOLE, ("bicubic", "paper", "vdsr", "ensemble")))
    put(ROOT / "docs/model-card.md", "fractions", table(rows, FRACTIONS, ("bicubic", "vdsr", "ensemble")))


def measured(folder: Path, ensemble: Collection[str], weights: Path | None) -> dict[str, Any]:
    """All figures; each as soon as it is there on the terminal too."""
    upscaler = Upscaler(weights, precision="fp32")
    rows = []
    for name in SETS:
        images = [to_array(Image.open(path)) for path in image_paths(folder / name)]
        for scale in (*WHOLE, *FRACTIONS):
            plain = compared(upscaler, images, scale, ensemble=False)
            found = {"bicubic": plain.bicubic, "vdsr": plain.vdsr}
            if name in ensemble:
                found["ensemble"] = compared(upscaler, images, scale, ensemble=True).vdsr
            rows.append({"set": name, "scale": scale, **{way: figures(score) for way, score in found.items()}})
            print(rows[-1], flush=True)
    machine = describe(upscaler.device)
    return {"machine": machine, "model": upscaler.identity.sha256, "engine": upscaler.engine.name, "rows": rows}


def compared(upscaler: Upscaler, images: list[np.ndarray], scale: float, *, ensemble: bool) -> Comparison:
    """The set's means."""
    upscaler.self_ensemble = ensemble
    return mean_comparison([score_degraded(upscaler, pixels, scale) for pixels in images])


def figures(score: Score) -> dict[str, float | None]:
    """Rounded beyond what is printed."""
    return {"psnr_y": round(score.psnr_y, 4), "ssim": None if score.ssim is None else round(score.ssim, 5)}


def table(rows: list[dict[str, Any]], scales: tuple[float, ...], ways: tuple[str, ...]) -> str:
    """Markdown."""
    names = {"bicubic": "bicubic", "paper": "paper", "vdsr": "**VDSR**", "ensemble": "VDSR, `--self-ensemble`"}
    lines = [["PSNR-Y / SSIM", "", *(f"x{scale:g}" for scale in scales)], ["---"] * (2 + len(scales))]
    for name in SETS:
        found = {row["scale"]: row for row in rows if row["set"] == name}
        for way in ways:
            if way == "paper":
                cells = [f"{psnr:.2f} / {ssim:.4f}" for psnr, ssim in PAPER[name]]
            else:
                cells = [cell(found[scale].get(way)) for scale in scales]
            lines.append([name, names[way], *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(score: dict[str, float] | None) -> str:
    """A dash for what was not measured."""
    return f"{score['psnr_y']:.2f} / {score['ssim']:.4f}" if score else "-"


def put(path: Path, name: str, text: str) -> None:
    """Between the markers of that name."""
    pattern = rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)"
    path.write_text(re.sub(pattern, rf"\g<1>{text}\n\g<2>", path.read_text(), flags=re.S))


if __name__ == "__main__":
    main()
