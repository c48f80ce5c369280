"""A signed body is still checked; a body that is not an event is refused without an exception of the parser."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhook_gateway import event


def nested(depth: int) -> bytes:
    """Return an event that is `depth` objects and lists deep, itself included."""
    return b'{"id": "evt_1", "a": ' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "body_not_json"),
        (b"\xff\xfe{}", "body_not_utf8"),
        ('{"id": "evt_1"}'.encode("utf-16"), "body_not_utf8"),
        ('\ufeff{"id": "evt_1"}'.encode(), "body_not_json"),
        (b'{"id": "evt_1"', "body_not_json"),
        (b'{"id": "evt_1"} {}', "body_not_json"),
        (b'{"id": "evt_1", "n": NaN}', "body_not_json"),
        (b'{"id": "evt_1", "n": -Infinity}', "body_not_json"),
        (b'{"id": "evt_1", "n": ' + b"9" * 5000 + b"}", "body_not_json"),
        (b'["evt_1"]', "body_not_object"),
        (b'"evt_1"', "body_not_object"),
        (b"null", "body_not_object"),
        (b"1", "body_not_object"),
        (b"{}", "event_id_missing"),
        (b'{"id": ""}', "event_id_missing"),
        (b'{"id": null}', "event_id_missing"),
        (b'{"id": 7}', "event_id_missing"),
        (b'{"id": ["evt_1"]}', "event_id_missing"),
        (b'{"id": "evt 1"}', "event_id_missing"),
        (b'{"id": "evt_1\\n"}', "event_id_missing"),
        (b'{"id": "\\ud800"}', "event_id_missing"),
        (json.dumps({"id": "e" * 256}).encode(), "event_id_missing"),
        (nested(event.DEPTH_MAX + 1), "body_nests_too_deep"),
        (nested(900), "body_nests_too_deep"),
        (b"[" * 130_000, "body_nests_too_deep"),
        (nested(120_000), "body_nests_too_deep"),
    ],
)
def test_what_is_no_event_gets_its_reason(body: bytes, reason: str) -> None:
    with pytest.raises(event.NotAnEventError) as caught:
        event.read_id(body)

    assert caught.value.reason == reason
    # The parser's exception contains the body, so the traceback must not include it.
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__


@pytest.mark.parametrize("body", [b' {"id": "evt_1"}\n', nested(event.DEPTH_MAX)])
def test_an_event_gives_its_id(body: bytes) -> None:
    assert event.read_id(body) == "evt_1"


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_no_body_raises_anything_else(body: bytes) -> None:
    with contextlib.suppress(event.NotAnEventError):
        event.read_id(body)
