"""Checks that the names in a catalog fit together.

It works on the plain document, so that it finds wrong names also if another value is invalid.
"""

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping

from billing_svc.catalog.notation import Problem

# Enough to recognise a name in an error line.
_SHOWN_LENGTH_MAX = 70


def quoted(word: object) -> str:
    """Return a word of the file for an error message, quoted and escaped, so that it stays on a single line."""
    text = word if isinstance(word, str) else str(word)
    return json.dumps(text if len(text) <= _SHOWN_LENGTH_MAX else text[:_SHOWN_LENGTH_MAX] + "...")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the end of an error about an unknown word: the nearest known word, or nothing."""
    nearest = difflib.get_close_matches(word[:_SHOWN_LENGTH_MAX], known, n=1)
    return f"; did you mean {nearest[0]}?" if nearest else ""


def problems(document: Mapping[str, object]) -> Iterator[Problem]:
    """Yield every name that is unknown, reserved or used twice; values of a wrong type are skipped."""
    meters, plans = _mapping(document.get("meters")), _mapping(document.get("plans"))
    default = document.get("default_plan")
    if isinstance(default, str) and default != "none" and default not in plans:
        yield Problem(("default_plan",), f"unknown plan {quoted(default)}{did_you_mean(default, plans)}")
    if "none" in plans:
        yield Problem(("plans", "none"), "none is reserved and means no plan; choose another name")
    yield from _taken_operations(meters)
    for key, plan in plans.items():
        yield from _unknown_meters(("plans", key), plan, meters)
        yield from _unknown_meters(("plans", key, "pay_as_you_go"), _mapping(plan).get("pay_as_you_go"), meters)


def _taken_operations(meters: Mapping[str, object]) -> Iterator[Problem]:
    taken: dict[str, str] = {}
    for key, meter in meters.items():
        for operation in _mapping(_mapping(meter).get("operations")):
            if operation in taken:
                message = f"{quoted(operation)} is already an operation of {taken[operation]}; choose another name"
                yield Problem(("meters", key, "operations", operation), message)
            taken.setdefault(operation, key)


def _unknown_meters(path: tuple[str, ...], holder: object, meters: Mapping[str, object]) -> Iterator[Problem]:
    for meter in _mapping(_mapping(holder).get("limits")):
        if meter not in meters:
            yield Problem((*path, "limits", meter), f"unknown meter {quoted(meter)}{did_you_mean(meter, meters)}")


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}
