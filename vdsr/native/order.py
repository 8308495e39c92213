"""In which order do a network's channels lie best? Those that are seldom zero first.

What is zero throughout a patch can be left out (`vdsr/native/tiles.h`), most cheaply where it lies together. The order
of hidden channels changes no bit of what the integers give: their sums are exact, and no unit depends on it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vdsr.smoke import tile


def seldom_zero_first(kernels: Sequence[Tensor], lanes: int) -> list[Tensor]:
    """The same network, by what its channels do on a known tile; what the last layer reads keeps its order.

    Args:
        kernels: (out, in, 3, 3) each.
        lanes: channels in a register; those at one place of two neighbouring registers are multiplied together.
    """
    places = torch.arange(kernels[0].shape[0]).view(-1, 2, lanes).transpose(1, 2).flatten()  # by rank
    x = torch.from_numpy(tile())[None, None]
    order = torch.arange(1)
    ordered = []
    with torch.inference_mode():
        for kernel in kernels[:-2]:
            x = torch.conv2d(x, kernel, padding=1).relu_()
            positive = (x > 0).sum((0, 2, 3))
            reordered = torch.empty_like(places)
            reordered[places] = torch.argsort(positive, descending=True, stable=True)
            ordered.append(kernel[reordered][:, order])
            order = reordered
    return [*ordered, *(kernel[:, order] for kernel in kernels[-2:-1]), kernels[-1]]
