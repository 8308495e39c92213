"""The bicubic resize is MATLAB's."""

from __future__ import annotations

import numpy as np
import pytest

from vdsr.resize import bicubic, plan_bicubic, scaled_size

RAMP = np.arange(16, dtype=np.float64).reshape(4, 4)


def slow_bicubic(row: np.ndarray, scale: float) -> np.ndarray:
    """One row, tap by tap, straight from the definition of imresize."""

    def cubic(x: float) -> float:
        x = abs(x)
        if x <= 1:
            return 1.5 * x**3 - 2.5 * x**2 + 1
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x <= 2 else 0.0

    n, shrink = len(row), min(scale, 1.0)
    result = []
    for i in range(int(np.ceil(round(n * scale, 6)))):
        centre = (i + 0.5) / scale - 0.5
        reach = int(np.ceil(2 / shrink)) + 1
        taps = range(int(np.floor(centre)) - reach, int(np.floor(centre)) + reach + 1)
        weights = [cubic(shrink * (centre - t)) for t in taps]
        mirrored = [t % (2 * n) if t % (2 * n) < n else 2 * n - 1 - t % (2 * n) for t in taps]
        result.append(sum(w * row[m] for w, m in zip(weights, mirrored, strict=True)) / sum(weights))
    return np.array(result)


def test_doubling_a_ramp_gives_the_kernel_values_with_mirrored_borders() -> None:
    # Keys' kernel at distances 1/4, 3/4, 5/4, 7/4: 111/128, 29/128, -9/128, -3/128.
    expected = [-0.09375, 0.1796875, 0.7265625, 1.25, 1.75, 2.2734375, 2.8203125, 3.09375]

    doubled = bicubic(RAMP[:1], size=(1, 8))[0]

    np.testing.assert_allclose(doubled, expected, atol=1e-12)


@pytest.mark.parametrize("scale", [2, 3, 4, 1.5, 2.37, 0.5, 1 / 3, 0.25, 0.61, 1.0])
@pytest.mark.parametrize("length", [1, 2, 5, 64, 129, 200])
def test_every_factor_equals_the_definition(scale: float, length: int) -> None:
    image = np.random.default_rng(length).random((length, length))
    once = np.array([slow_bicubic(row, scale) for row in image])
    expected = np.array([slow_bicubic(column, scale) for column in once.T]).T

    np.testing.assert_allclose(bicubic(image, scale=scale), expected, atol=1e-12)


def test_rows_and_columns_are_treated_alike() -> None:
    image = np.random.default_rng(0).random((37, 53))

    np.testing.assert_allclose(bicubic(image.T, scale=2.5), bicubic(image, scale=2.5).T, atol=1e-12)


def test_a_flat_image_stays_flat_at_any_factor() -> None:
    flat = np.full((3, 21, 34), 0.7)

    for scale in (0.2, 0.77, 3.1):
        np.testing.assert_allclose(bicubic(flat, scale=scale), 0.7, atol=1e-12)


@pytest.mark.parametrize("scale", [2, 3.3, 0.4])
def test_a_range_of_rows_has_the_bits_of_the_whole(scale: float) -> None:
    image = np.random.default_rng(1).random((2, 211, 90)).astype(np.float32)
    plan = plan_bicubic((211, 90), scale=scale)
    whole = plan(image)
    for start, stop in ((0, 1), (5, 64), (63, 66), (10, plan.size[0])):
        first, last = plan.source_rows(start, stop)

        part = plan.rows(image[:, first:last], start, stop, origin=first)

        assert np.array_equal(part, whole[:, start:stop])


def test_sizes_are_rounded_up_but_not_by_float_noise() -> None:
    assert scaled_size((100, 101), 1.1) == (110, 112)
    assert scaled_size((1, 3), 0.1) == (1, 1)
    assert scaled_size((5, 7), 2.5) == (13, 18)


@pytest.mark.parametrize("scale", [0, -1, float("nan"), float("inf")])
def test_a_factor_that_is_no_positive_number_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        bicubic(RAMP, scale=scale)


@pytest.mark.parametrize("length", [1, 2, 3, 65, 200])
@pytest.mark.parametrize(("scale", "most"), [(1, 1), (1.5, 4), (2, 4), (2.37, 4), (4, 4), (0.5, 8)])
def test_taps_are_the_blocks_without_their_zeros(length: int, scale: float, most: int) -> None:
    axis = plan_bicubic((length, 1), scale=scale).down
    column = np.random.default_rng(3).random((length, 1))

    indices, weights = axis.taps()
    gathered = (column[indices, 0] * weights).sum(axis=0)
    expected = np.concatenate(list(axis.row_blocks(column, 0, axis.out_len)))[:, 0]

    assert indices.shape == weights.shape == (len(indices), axis.out_len)
    assert len(indices) <= most
    np.testing.assert_allclose(gathered, expected, atol=1e-15)
    for start, stop in [(0, axis.out_len), (0, 1), (axis.out_len - 1, axis.out_len)]:
        low, high = axis.sources(start, stop)
        assert low <= indices[:, start:stop].min() <= indices[:, start:stop].max() < high
