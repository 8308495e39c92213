"""How is a short filter applied along one axis of an image, fast and repeatably?

Resampling and Gaussian windows are linear maps whose rows touch only a few neighbouring samples. Cut into
blocks of rows, such a map is a chain of small dense matrices, which BLAS multiplies.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK = 64  # outputs per dense block; larger wastes products with zeros, smaller pays calls


@dataclass(frozen=True)
class Banded:
    """A linear map from `in_len` to `out_len` samples, cut into dense blocks of up to BLOCK outputs."""

    in_len: int
    out_len: int
    blocks: tuple[tuple[int, NDArray[np.floating]], ...]
    """For each block its first input and its matrix, (outputs, inputs)."""

    def row_blocks(
        self, planes: NDArray[np.floating], start: int, stop: int, origin: int = 0
    ) -> Iterator[NDArray[np.floating]]:
        """The map applied down the columns, in whole blocks that cover outputs start..stop.

        Blocks are whole so that a row has the same bits whichever range asked for it: BLAS chooses its kernel, and
        so its order of summation, by the shape.

        Args:
            planes: (..., H, W) floating point, the inputs from `origin` on, as far as `sources` says.

        Yields:
            (..., up to BLOCK, W) in the dtype of `planes`; the first begins at output start - start % BLOCK.
        """
        for source, matrix in self.blocks[start // BLOCK : -(-stop // BLOCK)]:
            rows = planes[..., source - origin : source - origin + matrix.shape[1], :]
            yield matrix.astype(planes.dtype, copy=False) @ rows

    def sources(self, start: int, stop: int) -> tuple[int, int]:
        """The range of inputs that outputs start..stop are made of, whole blocks as in `row_blocks`."""
        used = self.blocks[start // BLOCK : -(-stop // BLOCK)]
        return min(low for low, _ in used), max(low + m.shape[1] for low, m in used)

    def taps(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """For each output the inputs it is made of and their weights, both (taps, out_len).

        There are as many taps as the output with most inputs has; where others have fewer, weights are 0.
        """
        most = max(int(np.count_nonzero(matrix, axis=1).max()) for _, matrix in self.blocks)
        indices = np.empty((most, self.out_len), np.int64)
        weights = np.zeros((most, self.out_len))
        for number, (source, matrix) in enumerate(self.blocks):
            outputs = slice(number * BLOCK, number * BLOCK + len(matrix))
            first = np.argsort(matrix == 0, axis=1, kind="stable")[:, :most]  # those that are not 0, in their order
            indices[:, outputs] = source + first[:, :1].T
            indices[: first.shape[1], outputs] = source + first.T
            weights[: first.shape[1], outputs] = np.take_along_axis(matrix, first, axis=1).T
        return np.where(weights == 0, indices[0], indices), weights

    def along_columns(self, planes: NDArray[np.floating]) -> NDArray[np.floating]:
        """The map applied along each row: (..., H, in_len) to (..., H, out_len)."""
        out = np.empty((*planes.shape[:-1], self.out_len), planes.dtype)
        for index, (source, matrix) in enumerate(self.blocks):
            columns = planes[..., source : source + matrix.shape[1]]
            target = out[..., index * BLOCK : index * BLOCK + matrix.shape[0]]
            np.matmul(columns, matrix.T.astype(planes.dtype, copy=False), out=target)
        return out


def banded(indices: NDArray[np.integer], weights: NDArray[np.floating], in_len: int) -> Banded:
    """Collect taps into blocks.

    Args:
        indices: (out_len, taps), each output's input positions in 0..in_len-1; one may occur more than once.
        weights: (out_len, taps), their weights.
    """
    out_len = indices.shape[0]
    blocks = []
    for start in range(0, out_len, BLOCK):
        idx, w = indices[start : start + BLOCK], weights[start : start + BLOCK]
        low, high = int(idx.min()), int(idx.max()) + 1
        matrix = np.zeros((idx.shape[0], high - low))
        rows = np.broadcast_to(np.arange(idx.shape[0])[:, None], idx.shape)
        np.add.at(matrix, (rows, idx - low), w)
        blocks.append((low, matrix))
    return Banded(in_len=in_len, out_len=out_len, blocks=tuple(blocks))
