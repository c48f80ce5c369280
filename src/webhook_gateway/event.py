"""Checks that a verified body is a JSON object with an id before it is forwarded. Pure."""

import json
import re
from typing import NoReturn

DEPTH_MAX = 64  # Stripe's events have about ten levels; deeper nesting could overflow a later reader's stack

_EVENT_ID = re.compile(r"[!-~]{1,255}")  # Stripe: an object's id has at most 255 characters


class NotAnEventError(Exception):
    """A signed body is not a Stripe event; `reason` comes from a fixed set of words and quotes nothing of the body."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def read_id(body: bytes) -> str:
    """Return the event's id, 1 to 255 printable ASCII characters. Raises nothing but NotAnEventError."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        # `from None` here and below: these exceptions contain the body.
        raise NotAnEventError("body_not_utf8") from None
    try:
        document = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise NotAnEventError("body_nests_too_deep") from None
    except ValueError:
        raise NotAnEventError("body_not_json") from None
    if not isinstance(document, dict):
        raise NotAnEventError("body_not_object")
    if _nests_deeper_than(document, DEPTH_MAX):
        raise NotAnEventError("body_nests_too_deep")
    event_id = document.get("id")
    if not isinstance(event_id, str) or not _EVENT_ID.fullmatch(event_id):
        raise NotAnEventError("event_id_missing")
    return event_id


def _refuse_constant(_name: str) -> NoReturn:
    """Refuse NaN and Infinity: Python's parser accepts them, but JSON and Postgres do not."""
    raise ValueError


def _nests_deeper_than(document: object, depth_max: int) -> bool:
    level = [document]
    for _ in range(depth_max):
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
        ]
        if not level:
            return False
    return any(isinstance(node, dict | list) for node in level)
