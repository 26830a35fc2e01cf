"""What came of a call with random arguments: the five ways in which it can end."""

import dataclasses
import re
import time
import traceback
import warnings
from collections.abc import Callable

import numpy as np
import tensorflow as tf

ANSWERED, REFUSED = "answered", "refused"
UNCLEAR, ACCEPTED, DIFFERENT = "unclear", "accepted", "different"
# How a call may not end: an error that says nothing to the user, an argument that is
# nonsense and was taken, an answer that the specification does not give.
FAILURES = (UNCLEAR, ACCEPTED, DIFFERENT)

_ERRORS = (ValueError, TypeError, RuntimeError, tf.errors.InvalidArgumentError)
_NEVER = (NotImplementedError, RecursionError, UnicodeError)
# Names something in backticks, or shows what came; Keras does that in its own words.
_SAYS = re.compile(
    r"`[^`]+`|[Rr]eceived|Could not interpret|layer should be tensors. Got"
    r"|Only input tensors may be passed|Data cardinality is ambiguous"
    r"|Unrecognized data type|found shape="
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A public function, class or method, and how it is called.

    Attributes:
        name: as users know it, without `keras_dynamic.`.
        call: function of the arguments by name.
        arguments: dict of `Kind`, or a function of a `random.Random` that gives
            (arguments, whether they are wrong) where they depend on one another; None
            in place of that where it is not known.
        check: function of the answer and the arguments, which raises an AssertionError
            where the answer is another one than the specification's.
        may_refuse: whether right arguments may contradict each other.
        slow: whether a call takes more than about 20 ms.
    """

    name: str
    call: Callable
    arguments: dict | Callable
    check: Callable | None = None
    may_refuse: bool = False
    slow: bool = False


@dataclasses.dataclass(frozen=True)
class Case:
    """How one call ended.

    Attributes:
        end: one of the five words.
        seconds: that it took.
        words: what there is to say of a failure.
    """

    end: str
    seconds: float
    words: str = ""


def draw(entry, r):
    """(arguments, whether one of them is wrong, None where it is not known)."""
    if callable(entry.arguments):
        return entry.arguments(r)
    drawn = {name: kind.right(r) for name, kind in entry.arguments.items()}
    can_be_wrong = [name for name, kind in entry.arguments.items() if kind.wrong]
    if not can_be_wrong or r.random() < 0.5:
        return drawn, False
    for name in {r.choice(can_be_wrong) for _ in range(r.randint(1, 2))}:
        drawn[name] = entry.arguments[name].wrong(r)
    return drawn, True


def judge(entry, arguments, wrong):
    """Calls an entry once; returns a `Case`.

    Args:
        arguments, wrong: as `draw` gives them.
    """
    begin = time.perf_counter()
    try:
        with warnings.catch_warnings():
            # A warning that says something is one of the package's or of Keras'.
            warnings.simplefilter("error")
            for known in (UserWarning, DeprecationWarning, FutureWarning):
                warnings.simplefilter("ignore", known)
            answer = entry.call(**arguments)
    except Exception as error:
        seconds = time.perf_counter() - begin
        if not is_clear(error):
            return Case(UNCLEAR, seconds, _words(entry, arguments, error))
        if wrong is False and not entry.may_refuse:
            return Case(DIFFERENT, seconds, _words(entry, arguments, error))
        return Case(REFUSED, seconds)
    seconds = time.perf_counter() - begin
    if wrong:
        return Case(ACCEPTED, seconds, _words(entry, arguments, answer))
    if entry.check is not None:
        try:
            entry.check(answer, **arguments)
        except AssertionError as error:
            return Case(DIFFERENT, seconds, _words(entry, arguments, error))
    return Case(ANSWERED, seconds)


def is_clear(error):
    """Whether an error says to a user what was wrong with what was given."""
    message = str(error)
    return (
        isinstance(error, _ERRORS)
        and not isinstance(error, _NEVER)
        and _SAYS.search(message) is not None
    )


def _words(entry, arguments, outcome):
    given = ", ".join(f"{key}={_short(value)}" for key, value in arguments.items())
    if isinstance(outcome, Exception):
        frames = traceback.extract_tb(outcome.__traceback__)
        own = [f for f in frames if "keras_dynamic" in f.filename]
        where = f" [{own[-1].filename.split('/')[-1]}:{own[-1].lineno}]" if own else ""
        outcome = f"{type(outcome).__name__}: {str(outcome)[:400]}{where}"
    return f"{entry.name}({given}) -> {_short(outcome, 500)}"


def _short(value, most=160):
    if isinstance(value, np.ndarray):
        text = f"{value.dtype}{value.shape}{value.tolist()!r}"
    else:
        text = repr(value) if not isinstance(value, str) else value
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 3] + "..."
