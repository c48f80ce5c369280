"""Pages of lists: opaque tokens that contain the position where the next page begins.

A token belongs to a list with its filters: a token of another list, and an altered token, are refused. A token gives no
rights; each page checks again which accounts the caller may see.
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
    """The fields that every request for a list has."""

    @property
    def page_size(self) -> int:
        """The number of rows; 0: the default."""
        ...

    @property
    def page_token(self) -> str:
        """The token from the page before; empty: the first page."""
        ...


@dataclass(frozen=True, slots=True)
class Page:
    """The requested page. `after` is the position of the last row before the page; None for the first page."""

    size: int
    after: tuple[Any, ...] | None
    scope: str

    def cut(self, rows: Sequence[T], position: Callable[[T], Sequence[object]]) -> tuple[Sequence[T], str]:
        """Return this page's rows and the next page's token ("" on the last page).

        `rows` has `size` + 1 rows if there is a next page.
        """
        shown = rows[: self.size]
        if len(rows) <= self.size:
            return shown, ""
        text = json.dumps([str(part) for part in position(shown[-1])])
        return shown, fields.to_page_token(f"{_seal(self.scope, text)} {text}")


def from_proto(request: Request, check: fields.Fields, scope: Sequence[object], *kinds: Callable[[str], Any]) -> Page:
    """Return the requested page. Calls `check.done()`, so it must be the last check of the request.

    `scope` is the list's name and its filters; `kinds` parse the parts of a position. Raises InvalidRequest and
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
    # The seal has no secret key, so a client could make a token; its contents are checked too.
    try:
        parts = json.loads(text)
        if seal == _seal(named, text) and all(part.isprintable() for part in parts):
            return Page(size, tuple(kind(part) for kind, part in zip(kinds, parts, strict=True)), named)
    except (ValueError, TypeError, AttributeError, RecursionError):
        pass
    raise errors.InvalidPageToken("page_token: was not issued for this list with these filters")


def instant(text: str) -> datetime:
    """Return the instant in a position. Raises ValueError."""
    at = datetime.fromisoformat(text)
    if at.tzinfo is None:
        raise ValueError("not an instant")
    return at


def small_number(text: str) -> int:
    """Return the number in a position; it fits an integer column. Raises ValueError."""
    if not text.isdecimal() or len(text) > _DIGITS_MAX:
        raise ValueError("not a small number")
    return int(text)


def _seal(scope: str, position: str) -> str:
    return hashlib.sha256(f"{scope} {position}".encode()).hexdigest()[:16]
