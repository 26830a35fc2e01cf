"""What `verbose` asks for."""

import numbers
import sys

__all__ = ["check_verbose", "say"]


def check_verbose(verbose):
    """An error for what is none of Keras' four ways to say something."""
    if isinstance(verbose, str | numbers.Integral) and verbose in ("auto", 0, 1, 2):
        return
    raise ValueError(
        f'`verbose` must be "auto", 0, 1 or 2. Received: verbose={verbose!r}.'
    )


def say(text):
    """What `verbose` asks for, on standard output."""
    sys.stdout.write(f"{text}\n")
