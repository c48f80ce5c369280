"""Pages of lists: opaque tokens that say where the next page begins.

A token belongs to one list with its filters: another list's, or an altered one, is refused. It carries no right; what a
caller may see is decided anew for each page.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol, TypeVar

from billing_svc.api import fields
from billing_svc.platform import errors

_DIGITS_MAX = 9
SIZE = 50
SIZE_MAX = 500

T = TypeVar("T")


class Request(Protocol):
    """What every request for a list has."""

    @property
    def page_size(self) -> int:
        """How many rows; 0: left out."""
        ...

    @property
    def page_token(self) -> str:
        """What the page before gave out; empty: the first page."""
        ...


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of a list is asked for; `after`: the position of the last row before it, None on the first page."""

    size: int
    after: tuple[Any, ...] | None
    scope: str

    def cut(self, rows: Sequence[T], position: Callable[[T], Sequence[object]]) -> tuple[Sequence[T], str]:
        """Return the rows of this page and the token of the next one; `rows` has one more where there is a next."""
        shown = rows[: self.size]
        if len(rows) <= self.size:
            return shown, ""
        text = json.dumps([str(part) for part in position(shown[-1])])
        return shown, fields.to_page_token(f"{_seal(self.scope, text)} {text}")


def from_proto(request: Request, check: fields.Fields, scope: Sequence[object], *kinds: Callable[[str], Any]) -> Page:
    """Return the page that is asked for; ends the checks of its request.

    `scope` is the list's name and its filters, `kinds` read the parts of a position. Raises InvalidRequest and
    InvalidPageToken.
    """
    if not 0 <= request.page_size <= SIZE_MAX:
        check.refuse("page_size", f"is {request.page_size}; must be 1 to {SIZE_MAX}")
    check.done()
    named = json.dumps([str(part) for part in scope])
    size = request.page_size or SIZE
    if not request.page_token:
        return Page(size, None, named)
    seal, _, text = fields.from_page_token(request.page_token).partition(" ")
    # The seal is no secret, so what it holds is checked as well.
    try:
        parts = json.loads(text)
        if seal == _seal(named, text) and all(part.isprintable() for part in parts):
            return Page(size, tuple(kind(part) for kind, part in zip(kinds, parts, strict=True)), named)
    except (ValueError, TypeError, AttributeError, RecursionError):
        pass
    raise errors.InvalidPageToken("page_token: is none that this list gave out with these filters")


def instant(text: str) -> datetime:
    """Return the instant in a position. Raises ValueError."""
    at = datetime.fromisoformat(text)
    if at.tzinfo is None:
        raise ValueError("no instant")
    return at


def small_number(text: str) -> int:
    """Return the number in a position; it fits into any column. Raises ValueError."""
    if not text.isdecimal() or len(text) > _DIGITS_MAX:
        raise ValueError("no number of ours")
    return int(text)


def _seal(scope: str, position: str) -> str:
    return hashlib.sha256(f"{scope} {position}".encode()).hexdigest()[:16]
