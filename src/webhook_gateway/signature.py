"""Verifies Stripe's webhook signature on the raw bytes. Pure, and no input makes it raise.

The scheme (Stripe's documentation, "Verify webhook signatures manually"): the header is `t=<seconds>,v1=<hex>,...`, and
each `v1` is the HMAC-SHA256 of `<seconds>.<body>`. There is a `v1` for each secret that is valid at the moment; items
of other schemes are ignored.
"""

import enum
import hashlib
import hmac
import re
from collections.abc import Sequence
from datetime import datetime

TOLERANCE_SECONDS = 300  # the default of Stripe's SDKs; applied to the future too, so no request is valid for longer
HEADER_BYTES_MAX = 2048  # Stripe sends about 150 bytes for each secret, and secrets overlap for a day at most
SIGNATURES_MAX = 8  # bounds the comparisons; more secrets than are rotated in a day

# Twelve digits reach the year 33658. Stripe writes ASCII digits; int() alone would also accept other characters.
_TIMESTAMP = re.compile(rb"[0-9]{1,12}")


class Fault(enum.StrEnum):
    """Why a signature is refused."""

    MISSING = "signature_missing"
    HEADER_TOO_LONG = "signature_header_too_long"
    MALFORMED = "signature_malformed"
    TOO_MANY = "signatures_too_many"
    OLD = "signature_old"
    FUTURE = "signature_future"
    WRONG = "signature_wrong"


def verify(body: bytes, header: bytes, secrets: Sequence[bytes], now: datetime) -> Fault | None:
    """Return why `header` is no valid signature of `body` for any of `secrets` at `now`; None means Stripe sent it.

    An empty header counts as missing. No secret may be empty: anyone can forge a signature for an empty secret.
    """
    parsed = _parse(header)
    if isinstance(parsed, Fault):
        return parsed
    timestamp, signatures = parsed
    age_seconds = now.timestamp() - int(timestamp)
    if age_seconds > TOLERANCE_SECONDS:
        return Fault.OLD
    if age_seconds < -TOLERANCE_SECONDS:
        return Fault.FUTURE
    return None if _any_matches(timestamp, body, signatures, secrets) else Fault.WRONG


def _parse(header: bytes) -> tuple[bytes, list[bytes]] | Fault:
    if not header:
        return Fault.MISSING
    if len(header) > HEADER_BYTES_MAX:
        return Fault.HEADER_TOO_LONG
    timestamps: list[bytes] = []
    signatures: list[bytes] = []
    for item in header.split(b","):
        scheme, separator, value = item.partition(b"=")
        if not separator:
            return Fault.MALFORMED
        if scheme == b"t":
            timestamps.append(value)
        elif scheme == b"v1":
            signatures.append(value)
    if len(timestamps) != 1 or not signatures or not _TIMESTAMP.fullmatch(timestamps[0]):
        return Fault.MALFORMED
    if len(signatures) > SIGNATURES_MAX:
        return Fault.TOO_MANY
    return timestamps[0], signatures


def _any_matches(timestamp: bytes, body: bytes, signatures: Sequence[bytes], secrets: Sequence[bytes]) -> bool:
    matches = False
    for secret in secrets:
        mac = hmac.new(secret, timestamp + b".", hashlib.sha256)
        mac.update(body)
        # The hex digits are compared as sent: decoding them first would accept altered bytes (a capital letter).
        expected = mac.hexdigest().encode()
        for signature in signatures:
            # Every candidate is compared, so that the time taken does not reveal which secret or position matched.
            matches |= hmac.compare_digest(expected, signature)
    return matches
