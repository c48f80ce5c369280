"""The signature's check uses only the bytes; it returns a result for any bytes."""

import hashlib
import hmac
from datetime import UTC, datetime, timedelta

import pytest
import stripe
from hypothesis import given
from hypothesis import strategies as st

from webhook_gateway import signature
from webhook_gateway.signature import Fault

NOW = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)
SECOND = int(NOW.timestamp())
SECRET = b"whsec_0123456789abcdef"
OTHER = b"whsec_fedcba9876543210"
BODY = b'{"id": "evt_1"}'


def hexmac(body: bytes = BODY, secret: bytes = SECRET, timestamp: str = str(SECOND)) -> str:
    return hmac.new(secret, timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def header(body: bytes = BODY, secret: bytes = SECRET, at: int = SECOND) -> bytes:
    return f"t={at},v1={hexmac(body, secret, str(at))}".encode()


def fault(header_value: bytes, body: bytes = BODY, secrets: tuple[bytes, ...] = (SECRET,)) -> Fault | None:
    return signature.verify(body, header_value, secrets, NOW)


def test_the_signature_of_stripes_own_sdk_verifies() -> None:
    made = stripe.WebhookSignature.generate_signature_header(BODY.decode(), SECRET.decode(), SECOND)

    assert fault(made.encode()) is None


def test_stripes_own_sdk_accepts_what_verifies_here() -> None:
    now = datetime.now(UTC)
    made = header(at=int(now.timestamp()))

    assert signature.verify(BODY, made, (SECRET,), now) is None
    assert stripe.WebhookSignature.verify_header(BODY, made.decode(), SECRET.decode(), signature.TOLERANCE_SECONDS)


def test_any_of_several_secrets_verifies() -> None:
    assert fault(header(secret=OTHER), secrets=(SECRET, OTHER)) is None
    assert fault(header(secret=SECRET), secrets=(SECRET, OTHER)) is None
    assert fault(header(secret=OTHER), secrets=(SECRET,)) is Fault.WRONG


def test_any_of_several_signatures_verifies_and_other_schemes_mean_nothing() -> None:
    wrong, right = "0" * 64, hexmac()

    assert fault(f"t={SECOND},v1={wrong},v1={right},v0={wrong}".encode()) is None
    assert fault(f"v1={right},v1={wrong},t={SECOND}".encode()) is None
    assert fault(f"t={SECOND},v0={right}".encode()) is Fault.MALFORMED


def test_the_body_may_be_any_bytes() -> None:
    for body in (b"", b"\x00\xff\xfe", "é".encode(), b"x" * 300_000):
        assert fault(header(body), body) is None


@pytest.mark.parametrize(
    ("age_seconds", "expected"),
    [(300, None), (301, Fault.OLD), (10**8, Fault.OLD), (-300, None), (-301, Fault.FUTURE), (-3600, Fault.FUTURE)],
)
def test_the_tolerance_holds_in_both_directions(age_seconds: int, expected: Fault | None) -> None:
    assert fault(header(at=SECOND - age_seconds)) is expected


def test_the_tolerance_is_exact_to_the_fraction_of_a_second() -> None:
    assert signature.verify(BODY, header(), (SECRET,), NOW + timedelta(seconds=300, microseconds=1)) is Fault.OLD


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"", Fault.MISSING),
        (b" ", Fault.MALFORMED),
        (b",", Fault.MALFORMED),
        (b"t=,v1=", Fault.MALFORMED),
        (f"t={SECOND}".encode(), Fault.MALFORMED),
        (f"v1={hexmac()}".encode(), Fault.MALFORMED),
        (hexmac().encode(), Fault.MALFORMED),
        (header() + b",", Fault.MALFORMED),
        (header() + b"," + header(), Fault.MALFORMED),
        (header().replace(b"t=", b"t= "), Fault.MALFORMED),
        (header().replace(b"t=", b"t=+"), Fault.MALFORMED),
        (header().replace(b"t=", b"t=-"), Fault.MALFORMED),
        ("t=١٢٣,v1=00".encode(), Fault.MALFORMED),
        (b"t=1_000,v1=00", Fault.MALFORMED),
        (b"t=9999999999999,v1=00", Fault.MALFORMED),
        (b"t=" + b"9" * 1000 + b",v1=00", Fault.MALFORMED),
        (b"t=999999999999,v1=00", Fault.FUTURE),
        (f"t={SECOND},v1=".encode(), Fault.WRONG),
        (f"t={SECOND},v1=é".encode(), Fault.WRONG),
        (f"t={SECOND},v1={hexmac()[:-1]}".encode(), Fault.WRONG),
        (f"t={SECOND},v1={hexmac()}0".encode(), Fault.WRONG),
        (f"t={SECOND},v1={hexmac().upper()}".encode(), Fault.WRONG),
        (f"t={SECOND},v1= {hexmac()}".encode(), Fault.WRONG),
    ],
)
def test_a_header_that_is_not_quite_stripes_is_refused(value: bytes, expected: Fault) -> None:
    assert fault(value) is expected


def test_length_and_number_are_bounded_whatever_else_is_right() -> None:
    padding = b",v0=" + b"0" * signature.HEADER_BYTES_MAX
    many = ",".join([f"v1={hexmac()}"] * (signature.SIGNATURES_MAX + 1))

    assert fault(header() + padding) is Fault.HEADER_TOO_LONG
    assert fault(f"t={SECOND},{many}".encode()) is Fault.TOO_MANY


@given(st.binary(max_size=300))
def test_no_random_header_raises_or_verifies(value: bytes) -> None:
    assert fault(value) is not None


_PIECES = st.sampled_from([b"t", b"v1", b"v0", b"=", b",", b" ", b"\x00", b"\xff", str(SECOND).encode(), b"0" * 64])


@given(st.lists(_PIECES | st.binary(max_size=4), max_size=40).map(b"".join), st.binary(max_size=100))
def test_no_header_made_of_plausible_pieces_raises_or_verifies(value: bytes, body: bytes) -> None:
    assert fault(value, body) is not None


@given(st.binary(min_size=1, max_size=200), st.data())
def test_no_altered_byte_verifies(body: bytes, data: st.DataObject) -> None:
    signed = header(body)
    whole = signed + body
    place = data.draw(st.integers(0, len(whole) - 1))
    changed = bytearray(whole)
    changed[place] ^= data.draw(st.integers(1, 255))

    assert fault(signed, body) is None
    assert fault(bytes(changed[: len(signed)]), bytes(changed[len(signed) :])) is not None


@given(st.binary(max_size=100), st.binary(min_size=1, max_size=20))
def test_no_longer_or_shorter_body_verifies(body: bytes, more: bytes) -> None:
    assert fault(header(body), body + more) is Fault.WRONG
    assert fault(header(body + more), body) is Fault.WRONG
