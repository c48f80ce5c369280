"""Decodes form bodies and query strings: `a[b][0]=c` becomes nested data."""

import re
import urllib.parse
from typing import Any

from stripe_sandbox import errors

Params = dict[str, Any]

FIELDS_MAX = 2_000
"""The most fields of a form. The largest requests of billing-svc have a few dozen."""

DEPTH_MAX = 10
"""The most levels of a parameter's name. Stripe's deepest parameter has seven pairs of brackets."""

_NAME = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])*)")


def decode(encoded: bytes) -> Params:
    """Return the nested fields. A list stays a dict with the keys "0", "1"...; each `a[]` gets the next number.

    Raises InvalidParameter.
    """
    try:
        pairs = urllib.parse.parse_qsl(
            encoded.decode(), keep_blank_values=True, max_num_fields=FIELDS_MAX, errors="strict"
        )
    except ValueError as error:
        raise errors.InvalidParameter("The form is not UTF-8, or has too many fields.") from error
    nested: Params = {}
    for name, value in pairs:
        _place(nested, name, value)
    return nested


def _place(nested: Params, name: str, value: str) -> None:
    match = _NAME.fullmatch(name)
    if match is None:
        raise errors.InvalidParameter(f"Invalid parameter name: {name[:100]}")
    keys = [match[1], *re.findall(r"\[([^\[\]]*)\]", match[2])]
    if len(keys) > DEPTH_MAX:
        raise errors.InvalidParameter(f"Too deeply nested parameter: {name[:100]}")
    at: Any = nested
    for key in keys[:-1]:
        at = at.setdefault(key or str(len(at)), {})
        if not isinstance(at, dict):
            raise errors.InvalidParameter(f"{keys[0]} is given both as a value and as a hash.", param=keys[0])
    last = keys[-1] or str(len(at))
    if last in at:
        raise errors.InvalidParameter(f"{name[:100]} is given twice.", param=keys[0])
    at[last] = value


def encode_path(path: tuple[str, ...]) -> str:
    """Return the form's name of a place in nested data: `line_items[0][price]`."""
    first, *rest = path
    return first + "".join(f"[{key}]" for key in rest)
