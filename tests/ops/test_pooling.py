import numpy as np
import pytest
import tensorflow as tf

from keras_dynamic.ops import pooling


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


# Tokens

TOKENS = np.array([[[1, -1], [2, -2], [6, -6]]], "float32")


@pytest.mark.parametrize(
    "mask, mean, maximum",
    [
        (None, [3, -3], [6, -1]),  # (1 + 2 + 6) / 3
        ([1, 1, 1], [3, -3], [6, -1]),
        ([1, 1, 0], [1.5, -1.5], [2, -1]),
        ([0, 1, 1], [4, -4], [6, -2]),
        ([0, 0, 1], [6, -6], [6, -6]),
        ([0, 0, 0], [0, 0], [0, 0]),
    ],
)
def test_tokens_by_hand(mask, mean, maximum):
    mask = None if mask is None else np.array([mask], bool)
    assert pooling.masked_mean(TOKENS, mask).numpy().tolist() == [mean]
    assert pooling.masked_max(TOKENS, mask).numpy().tolist() == [maximum]


def test_tokens_against_numpy_masked_arrays():
    inputs, mask = normal(20, 7, 3), np.random.default_rng(1).random((20, 7)) < 0.6
    mask[0] = False
    hidden = np.ma.array(inputs, mask=np.repeat(~mask[:, :, None], 3, axis=2))
    np.testing.assert_allclose(
        pooling.masked_mean(inputs, mask), hidden.mean(axis=1).filled(0), atol=1e-6
    )
    np.testing.assert_array_equal(
        pooling.masked_max(inputs, mask), hidden.max(axis=1).filled(0)
    )


@pytest.mark.parametrize("pool", [pooling.masked_mean, pooling.masked_max])
def test_only_kept_tokens_matter(pool):
    inputs, mask = normal(4, 5, 3), np.arange(5) < np.array([[5], [3], [1], [0]])
    expected = pool(inputs, mask)
    for junk in (np.nan, np.inf, -np.inf):
        inputs[~mask] = junk
        np.testing.assert_array_equal(pool(inputs, mask), expected)
    inputs[1, 0, 0] = np.nan
    assert np.isnan(pool(inputs, mask)[1, 0])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("masked", [False, True])
def test_long_sequences_in_half_precision(dtype, masked):
    # The sum of 3,000 tokens of 100 is above float16's largest number, and bfloat16
    # counts 256 + 1 = 256. Only the first 2,000 tokens count where masked.
    tokens = tf.concat([tf.fill([1, 2000, 2], 100.0), tf.fill([1, 1000, 2], 40.0)], 1)
    mask = np.arange(3000)[None] < 2000 if masked else None
    mean = pooling.masked_mean(tf.cast(tokens, dtype), mask)
    assert mean.dtype == dtype
    # (2,000 x 100 + 1,000 x 40) / 3,000 = 80
    assert tf.cast(mean, "float32").numpy().tolist() == [[100 if masked else 80] * 2]
    maximum = pooling.masked_max(tf.cast(tokens, dtype), mask)
    assert maximum.dtype == dtype
    assert tf.cast(maximum, "float32").numpy().tolist() == [[100, 100]]


@pytest.mark.parametrize("pool", [pooling.masked_mean, pooling.masked_max])
@pytest.mark.parametrize("mask", [None, np.ones((0, 4), bool)])
def test_tokens_of_no_rows(pool, mask):
    assert pool(normal(0, 4, 3), mask).shape == (0, 3)


def test_largest():
    assert pooling.largest(TOKENS, axis=(1, 2)).numpy().tolist() == [6]
    assert np.isnan(pooling.largest(np.array([[1.0, np.nan]]), axis=1))
    assert pooling.largest(normal(0, 4, 3), axis=1).shape == (0, 3)


# Maps


@pytest.mark.parametrize(
    "size, grid",
    [
        ((8, 8, 64), 4),  # 4 x 4 x 64 = 1,024
        ((8, 8, 65), 2),
        ((7, 8, 1), 2),  # 4 cells of 2 pixels need 8
        ((4, 4, 256), 2),  # 2 x 2 x 256 = 1,024
        ((4, 4, 257), 1),
        ((3, 100, 1), 1),
        ((100, 5, 1), 2),
        ((224, 224, 64), 4),
        ((None, 8, 1), 1),
        ((8, None, 1), 1),
        ((8, 8, None), 1),
    ],
)
def test_grid_for_map(size, grid):
    assert pooling.grid_for_map(*size) == grid


@pytest.mark.parametrize(
    "kind, expected",
    [("average", [[2.5, 4.5], [10.5, 12.5]]), ("max", [[5, 7], [13, 15]])],
)
def test_grid_by_hand(kind, expected):
    #  0  1 |  2  3    (0 + 1 + 4 + 5) / 4 = 2.5, and 5 is the largest
    #  4  5 |  6  7
    #  8  9 | 10 11
    # 12 13 | 14 15
    image = np.arange(16, dtype="float32").reshape(1, 4, 4, 1)
    cells = pooling.pool_to_grid(image, 2, kind, "channels_last").numpy()
    assert cells[0, :, :, 0].tolist() == expected
    first = image.transpose(0, 3, 1, 2)
    cells = pooling.pool_to_grid(first, 2, kind, "channels_first").numpy()
    assert cells[0, 0].tolist() == expected


def cells_of(image, grid, kind):
    """The grid in NumPy: cells of one size over the map with NaN around it."""
    height, width = image.shape[1:3]
    tall, wide = -(-height // grid), -(-width // grid)
    down, across = -(-height // tall), -(-width // wide)
    missing = down * tall - height, across * wide - width
    around = [(0, 0), *((m // 2, m - m // 2) for m in missing), (0, 0)]
    image = np.pad(image, around, constant_values=np.nan)
    image = image.reshape(len(image), down, tall, across, wide, -1)
    return (np.nanmean if kind == "average" else np.nanmax)(image, axis=(2, 4))


@pytest.mark.parametrize("kind", ["average", "max"])
@pytest.mark.parametrize(
    "height, width, grid, shape",
    [
        (6, 6, 3, (3, 3)),
        (8, 4, 2, (2, 2)),
        (5, 7, 2, (2, 2)),  # cells of 3 x 4, those at the border smaller
        (10, 10, 4, (4, 4)),
        (9, 9, 4, (3, 3)),  # cells of 3 x 3 fill the map with three a side
        (2, 8, 4, (2, 4)),  # no more cells than pixels
    ],
)
def test_grid_against_numpy(kind, height, width, grid, shape):
    image = normal(2, height, width, 3)
    cells = pooling.pool_to_grid(image, grid, kind, "channels_last")
    assert cells.shape == (2, *shape, 3)
    np.testing.assert_allclose(cells, cells_of(image, grid, kind), atol=1e-6)
    first = pooling.pool_to_grid(
        image.transpose(0, 3, 1, 2), grid, kind, "channels_first"
    )
    np.testing.assert_allclose(first.numpy().transpose(0, 2, 3, 1), cells, atol=1e-6)


@pytest.mark.parametrize(
    "kind, reduce", [("average", np.mean), ("max", np.max)], ids=["average", "max"]
)
def test_grid_of_one_is_global(kind, reduce):
    image = normal(2, 5, 7, 3)
    cells = pooling.pool_to_grid(image, 1, kind, "channels_last")
    np.testing.assert_allclose(cells, reduce(image, axis=(1, 2)), atol=1e-6)
    first = image.transpose(0, 3, 1, 2)
    cells = pooling.pool_to_grid(first, 1, kind, "channels_first")
    np.testing.assert_allclose(cells, reduce(image, axis=(1, 2)), atol=1e-6)


@pytest.mark.parametrize("kind", ["average", "max"])
@pytest.mark.parametrize("grid, shape", [(1, (0, 3)), (2, (0, 2, 2, 3))])
def test_maps_of_no_rows(kind, grid, shape):
    cells = pooling.pool_to_grid(normal(0, 4, 4, 3), grid, kind, "channels_last")
    assert cells.shape == shape
