"""A dataclass back from the plain numbers that it was written as.

NaN was written as `None`, an infinite number as "inf" or "-inf".
"""

import dataclasses
import json
import math
import types
import typing

__all__ = ["read_dataclass", "read_json"]

_INFINITE = {"inf": math.inf, "-inf": -math.inf}


def read_json(path):
    """The JSON object in a file.

    Args:
        path: `pathlib.Path`.

    Raises:
        OSError: where it cannot be read.
        ValueError: for anything but one JSON object.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is no whole JSON file: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"it must hold one JSON object. Received: {_shown(value)}.")
    return value


def read_dataclass(cls, value, where="report"):
    """An instance of a dataclass from a dict of plain numbers.

    Args:
        cls: the dataclass; its fields are numbers, strings, `None`, tuples and other
            dataclasses, as their annotations say.
        value: dict. Keys that are no fields are passed by.
        where: string, what the dict is, for errors.

    Raises:
        ValueError: for a field that is not there, or is not what it must be; it says
            which.
    """
    if not isinstance(value, dict):
        raise ValueError(f"`{where}` must be an object. Received: {_shown(value)}.")
    kinds = typing.get_type_hints(cls)
    arguments = {}
    for field in dataclasses.fields(cls):
        place = f"{where}.{field.name}"
        if field.name not in value:
            raise ValueError(f"`{place}` is not there.")
        arguments[field.name] = _read(kinds[field.name], value[field.name], place)
    return cls(**arguments)


def _read(kind, value, place):
    if isinstance(kind, types.UnionType):
        (kind,) = (each for each in kind.__args__ if each is not types.NoneType)
        return None if value is None else _read(kind, value, place)
    if dataclasses.is_dataclass(kind):
        return read_dataclass(kind, value, place)
    if typing.get_origin(kind) is tuple:
        return _read_tuple(typing.get_args(kind), value, place)
    if kind is float:
        return _read_float(value, place)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise _unexpected(kind.__name__, value, place)
    return value


def _read_tuple(kinds, value, place):
    if not isinstance(value, list):
        raise _unexpected("list", value, place)
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(value)
    if len(kinds) != len(value):
        raise _unexpected(f"list of {len(kinds)}", value, place)
    return tuple(
        _read(kind, entry, f"{place}[{number}]")
        for number, (kind, entry) in enumerate(zip(kinds, value, strict=True))
    )


def _read_float(value, place):
    if value is None:
        return math.nan
    if isinstance(value, str) and value in _INFINITE:
        return _INFINITE[value]
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and abs(value) <= 1e308):
        raise _unexpected("number", value, place)
    return float(value)


def _unexpected(expected, value, place):
    return ValueError(f"`{place}` must be a {expected}. Received: {_shown(value)}.")


def _shown(value):
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
