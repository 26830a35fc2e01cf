"""Arguments drawn at random: right ones, and wrong ones of every sort.

Everything is drawn from a `random.Random`. A test takes one of hypothesis
(`strategies.randoms`), which then chooses, and shrinks, each number that is drawn; the
benchmark takes Python's own, which is a hundred times as fast.
"""

import dataclasses
import math
from collections.abc import Callable

import ml_dtypes
import numpy as np
import tensorflow as tf

FLOATS = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)
INTEGERS = (np.int8, np.uint8, np.int32, np.int64)
# What arithmetic stumbles over: signed zeros, denormals, the ends of float16 and
# float32 and what lies beyond them.
EXTREMES = (
    *(0.0, -0.0, 1e-45, -1e-40, 1e-38, 1e-7, 65504.0, -7e4, 1e30, 3.4e38, -3.4e38),
    *(math.inf, -math.inf, math.nan),
)


class Nothing:
    """An object that is none of anything; its name is short in messages."""

    def __repr__(self):
        return "<nothing>"


NOTHING = Nothing()
# Of no type that any argument but a free one has.
JUNK = (NOTHING, {}, {"a": 1}, 1j, b"bytes", print, {1, 2})


@dataclasses.dataclass(frozen=True)
class Kind:
    """What an argument may be, and what it may not.

    Attributes:
        right: function of a `random.Random` that draws what has to be accepted.
        wrong: the same for what has to be refused; None if nothing is.
    """

    right: Callable
    wrong: Callable | None = None


def of(*values):
    """Draws one of a few values."""
    return lambda r: r.choice(values)


def any_of(*draws):
    """Draws by one of several functions."""
    return lambda r: r.choice(draws)(r)


def number(low=-math.inf, high=math.inf, above=False, below=False, wrong=()):
    """A number from low to high; `above` and `below`: without these themselves."""
    bottom, top = max(low, -1e3), min(high, 1e3)

    def right(r):
        value = bottom + (top - bottom) * r.random()
        if not above and r.random() < 0.2:
            value = bottom
        if not below and r.random() < 0.2:
            value = top
        if (above and value <= low) or (below and value >= high):
            value = (bottom + top) / 2
        kinds = [float, np.float64]
        if value == float(np.float32(value)):
            kinds.append(np.float32)
        return r.choice(kinds)(value)

    bad = [math.nan, True, "0.5", "nonsense", [], [0.5, 0.5], *JUNK, *wrong]
    bad += [math.inf, -math.inf, np.float32("nan")]
    if low > -math.inf:
        bad += [low - 1, low - 1e-3, *([low] if above else [])]
    if high < math.inf:
        bad += [high + 1, high + 1e-3, 1e30, *([high] if below else [])]
    return Kind(right, of(*bad))


def integer(low=None, high=None, wrong=(), right=None):
    """A whole number from low to high."""
    last = (low or 0) + 3 if high is None else high
    first = -3 if low is None else low

    def draw(r):
        return r.choice([int, np.int32, np.int64])(r.randint(first, last))

    bad = [math.nan, math.inf, 2.5, True, "2", [], [1], *JUNK, *wrong]
    bad += [] if low is None else [low - 1, -(10**9)]
    bad += [] if high is None else [high + 1, 10**9]
    return Kind(draw if right is None else right, of(*bad))


def boolean():
    return Kind(of(True, False), of("True", 2, 0.5, math.nan, [], *JUNK))


def name(*known, wrong=()):
    """One of a few words."""
    return Kind(
        of(*known), of("nonsense", "", 3, 0.5, True, [], [known[0]], *JUNK, *wrong)
    )


def optional(kind):
    """None as well."""
    return Kind(any_of(of(None), kind.right, kind.right), kind.wrong)


def required(kind):
    """None is refused."""
    return Kind(kind.right, any_of(of(None), kind.wrong, kind.wrong, kind.wrong))


def free(*values):
    """One of a few values, and nothing is wrong."""
    return Kind(of(*values))


def rows(r, *few):
    """How many samples: mostly one of a few numbers, now and then hundreds."""
    return 500 if r.random() < 0.06 else r.choice(few)


def floats(r, shape, spoiled=0.4, scale=2.0, dtypes=FLOATS):
    """An array of floats, now and then with extreme values."""
    generator = np.random.default_rng(r.getrandbits(32))
    values = np.asarray(generator.normal(size=shape) * scale)
    if values.size and r.random() < spoiled:
        for _ in range(r.randint(1, 3)):
            values.flat[r.randrange(values.size)] = r.choice(EXTREMES)
        some = generator.random(shape) < 0.02
        values[some] = generator.choice(EXTREMES, size=some.sum())
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(r.choice(dtypes))


def probabilities(r, rows, classes, spoiled=0.2, dtypes=(np.float32, np.float64)):
    """(rows, classes): rows of a softmax, some with zeros, ones, ties or a NaN."""
    generator = np.random.default_rng(r.getrandbits(32))
    values = generator.dirichlet(np.full(classes, 0.7), size=rows)
    for row in range(rows):
        fate = r.random()
        if fate < 0.15:
            values[row] = np.eye(classes)[r.randrange(classes)]
        elif fate < 0.3:
            values[row] = 1 / classes
        elif fate < 0.3 + spoiled / 2:
            values[row, r.randrange(classes)] = math.nan
    return values.astype(r.choice(dtypes))


def shape_of(r, ranks=(0, 1, 2, 3, 4, 5), sizes=(0, 1, 1, 2, 3)):
    return tuple(r.choice(sizes) for _ in range(r.choice(ranks)))


def no_array(r):
    """What no array of numbers can be made of, or none with axes."""
    return r.choice(
        [
            *(
                None,
                "nonsense",
                NOTHING,
                {},
                {"a": [1.0]},
                ["a", "b"],
                [[1.0], [2.0, 3]],
            ),
            *(np.array(["x", "y"]), np.array([None, NOTHING]), [None, 1.0], 1j),
            tf.ragged.constant([[1.0], [2.0, 3.0]]),
        ]
    )


def array_not_of(*ranks, also=()):
    """Draws arrays of other ranks, and what is none."""
    others = [rank for rank in range(6) if rank not in ranks]

    def draw(r):
        kind = r.random()
        if kind < 0.5:
            return floats(r, shape_of(r, others))
        if kind < 0.7 and also:
            return r.choice(also)(r) if callable(also[0]) else r.choice(also)
        return no_array(r)

    return draw
