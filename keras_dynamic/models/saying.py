"""What `verbose` asks for."""

import sys

__all__ = ["say"]


def say(text):
    """What `verbose` asks for, on standard output."""
    sys.stdout.write(f"{text}\n")
