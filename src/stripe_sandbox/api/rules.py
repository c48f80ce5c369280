"""Stripe's rules for parameters that the SDK's types do not express."""

import decimal
import re
import urllib.parse
from collections.abc import Iterable, Iterator
from typing import Any

from stripe_sandbox import errors
from stripe_sandbox.api import forms

METADATA_KEYS_MAX = 50
METADATA_KEY_LENGTH_MAX = 40
METADATA_VALUE_LENGTH_MAX = 500
DECIMAL_PLACES_MAX = 12

_EMAIL = re.compile(r"[^@\s]+@[^@\s.]+(\.[^@\s.]+)+")


def check_supported(params: forms.Params, supported: Iterable[str]) -> None:
    """Refuse parameters without an effect in the sandbox.

    `supported` has dotted names; the name of a hash allows all parameters in it. Raises InvalidParameter.
    """
    allowed = frozenset(supported)
    for path in _paths(params, ()):
        names = [".".join(path[: length + 1]) for length in range(len(path))]
        if allowed.isdisjoint(names):
            param = forms.encode_path(path)
            raise errors.InvalidParameter(
                f"The sandbox does not act on '{param}', though Stripe does.", param=param, code="sandbox_unsupported"
            )


def _paths(node: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:  # noqa: ANN401 - JSON
    """Yield the path of every value, without the indexes of lists."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _paths(value, (*path, key))
    elif isinstance(node, list):
        for value in node:
            yield from _paths(value, path)
    else:
        yield path


def check_common(node: Any, path: tuple[str, ...] = ()) -> None:  # noqa: ANN401 - JSON
    """Check parameters with the same rules everywhere: metadata, e-mail addresses, URLs, decimals.

    Raises InvalidParameter.
    """
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in children:
        inner = (*path, str(key))
        match key:
            case "metadata":
                _check_metadata(value or {}, inner)
            case "email" | "customer_email":
                _check_email(value, inner)
            case "success_url" | "cancel_url" | "return_url":
                _check_url(value, inner)
            case _ if isinstance(value, decimal.Decimal):
                _check_decimal(value, inner)
            case _:
                check_common(value, inner)


def _check_metadata(metadata: dict[str, str], path: tuple[str, ...]) -> None:
    if len(metadata) > METADATA_KEYS_MAX:
        raise errors.InvalidParameter(
            f"Metadata can have at most {METADATA_KEYS_MAX} keys.", param=forms.encode_path(path)
        )
    for key, value in metadata.items():
        if len(key) > METADATA_KEY_LENGTH_MAX or len(value) > METADATA_VALUE_LENGTH_MAX:
            raise errors.InvalidParameter(
                f"Metadata keys can be up to {METADATA_KEY_LENGTH_MAX} characters long, values up to"
                f" {METADATA_VALUE_LENGTH_MAX}.",
                param=forms.encode_path((*path, key)),
            )


def _check_email(value: str, path: tuple[str, ...]) -> None:
    if value and not _EMAIL.fullmatch(value):
        raise errors.InvalidParameter(
            f"Invalid email address: {value[:100]}", param=forms.encode_path(path), code="email_invalid"
        )


def _check_url(value: str, path: tuple[str, ...]) -> None:
    # The braces of Stripe's template are not valid in a URL.
    parts = urllib.parse.urlsplit(value.replace("{CHECKOUT_SESSION_ID}", "id"))
    if parts.scheme not in ("http", "https") or not parts.hostname or not value.isprintable() or " " in value:
        raise errors.InvalidParameter(
            "Not a valid URL: it must begin with http:// or https://.",
            param=forms.encode_path(path),
            code="url_invalid",
        )


def _check_decimal(value: decimal.Decimal, path: tuple[str, ...]) -> None:
    exponent = value.as_tuple().exponent
    if not isinstance(exponent, int) or -exponent > DECIMAL_PLACES_MAX or value < 0:
        raise errors.InvalidParameter(
            f"Invalid decimal: it must be at least 0 and have at most {DECIMAL_PLACES_MAX} decimal places.",
            param=forms.encode_path(path),
        )


def merged_metadata(old: dict[str, str], given: dict[str, str] | str | None) -> dict[str, str]:
    """Return the metadata after an update: an empty value removes its key, an empty string removes all keys."""
    if given is None:
        return old
    if isinstance(given, str):
        return {}
    return {key: value for key, value in {**old, **given}.items() if value}


def plain(number: decimal.Decimal) -> str:
    """Return a decimal in Stripe's notation: no exponent, no zeros at the end."""
    return f"{number.normalize():f}"
