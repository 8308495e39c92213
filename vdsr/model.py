"""What is the network? VDSR: twenty 3x3 convolutions that predict what bicubic interpolation lost.

Kim, Lee and Lee, "Accurate Image Super-Resolution Using Very Deep Convolutional Networks", CVPR 2016:
section 3.1 gives the layers, 3.2 the residual, 3.3 the training, 4.3 one model for several scales.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn


@dataclass(frozen=True)
class VDSRConfig:
    """The shape of the network; the defaults are the paper's, with 664,704 weights."""

    depth: int = 20
    channels: int = 64

    @property
    def halo(self) -> int:
        """How far a pixel sees: a tile with this margin gives what the whole image gives. One pixel a layer."""
        return self.depth


class VDSR(nn.Module):
    """Predicts the residual that bicubic interpolation lost, and adds it back."""

    def __init__(self, config: VDSRConfig | None = None) -> None:
        super().__init__()
        self.config = config or VDSRConfig()
        widths = [1, *[self.config.channels] * (self.config.depth - 1), 1]
        self.layers = nn.ModuleList(
            nn.Conv2d(before, after, kernel_size=3, padding=1, bias=False) for before, after in pairwise(widths)
        )
        for kernel in self.kernels:  # He et al. (2015), as the paper's section 4.1 says
            nn.init.kaiming_normal_(kernel, nonlinearity="relu")

    @property
    def kernels(self) -> list[Tensor]:
        """The weights of each layer in order, (out, in, 3, 3): all the parameters there are."""
        return list(self.parameters())

    def forward(self, y: Tensor) -> Tensor:
        """Sharpen luminance that is already at its target size.

        Args:
            y: (N, 1, H, W) float in [0, 1], studio-range luminance / 255 after bicubic upscaling.

        Returns:
            (N, 1, H, W), not clamped: the caller clamps once, after stitching tiles.
        """
        return y + self.residual(y)

    def residual(self, y: Tensor) -> Tensor:
        """(N, 1, H, W) to (N, 1, H, W): what to add to the bicubic image."""
        x = y
        for layer in self.layers[:-1]:
            x = layer(x).relu_()  # (N, 64, H, W)
        residual: Tensor = self.layers[-1](x)
        return residual
