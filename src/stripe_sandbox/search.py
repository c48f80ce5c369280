"""Search by Stripe's query language: `email:"a@b.example" AND metadata["account_id"]:"org_1"`.

A search sees each object as it was some time ago: Stripe indexes writes later, so an object that was just created is
not found, and an object that was just changed is found by its former content.
"""

import dataclasses
import operator
import re
from collections.abc import Callable, Iterator

from stripe_sandbox import errors
from stripe_sandbox.api import forms, rendering
from stripe_sandbox.api.context import PAGE_SIZE, PAGE_SIZE_MAX, Context
from stripe_sandbox.state import Json

CLAUSES_MAX = 10
"""Stripe's bound on the clauses of a query."""

TEXTS = {"customer": {"email", "name", "phone"}, "subscription": {"status"}}
NUMBERS = {"customer": {"created"}, "subscription": {"created", "canceled_at"}}
"""The fields that can be searched, beside the metadata."""

COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    ">": operator.gt,
    "<": operator.lt,
    ">=": operator.ge,
    "<=": operator.le,
}

_CLAUSE = re.compile(
    r"""\s*(?P<negated>-?)(?P<field>\w+)(?:\[(?P<quote>["'])(?P<key>.*?)(?P=quote)\])?"""
    r"""(?P<operator>:|~|>=|<=|>|<)(?P<value>null|\d+|"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')"""
    r"""(?:\s+(?P<joint>AND|OR)(?=\s)|(?=\s|$))\s*""",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True, slots=True)
class _Clause:
    field: str
    key: str | None
    operator: str
    value: str | None  # None: null
    negated: bool

    def holds(self, body: Json) -> bool:
        found = (body["metadata"] or {}).get(self.key) if self.key is not None else body[self.field]
        return self._matches(found) != self.negated

    def _matches(self, found: str | int | None) -> bool:
        if found is None or self.value is None:
            return found is None and self.value is None
        if self.operator in COMPARISONS:
            return COMPARISONS[self.operator](int(found), int(self.value))
        text, wanted = str(found).lower(), self.value.lower()
        return text == wanted if self.operator == ":" else wanted in text


def customers(context: Context, params: forms.Params) -> Json:
    """Answer GET /v1/customers/search."""
    return _search(context, "customer", "/v1/customers/search", params)


def subscriptions(context: Context, params: forms.Params) -> Json:
    """Answer GET /v1/subscriptions/search."""
    return _search(context, "subscription", "/v1/subscriptions/search", params)


def _search(context: Context, kind: str, url: str, params: forms.Params) -> Json:
    limit = params.get("limit", PAGE_SIZE)
    if not 1 <= limit <= PAGE_SIZE_MAX:
        raise errors.InvalidParameter(f"limit must be between 1 and {PAGE_SIZE_MAX}.", param="limit")
    clauses, any_of = _read(kind, params["query"])
    join = any if any_of else all
    found = [
        body
        for body in context.work.versions(kind, context.now - context.delay_seconds("search"))
        if not body.get("deleted") and join(clause.holds(body) for clause in clauses)
    ]
    if "page" in params:
        ids = [body["id"] for body in found]
        after = params["page"].removeprefix("page_")
        if after not in ids:
            raise errors.Refused("This page does not exist (any more).", param="page")
        found = found[ids.index(after) + 1 :]
    has_more = len(found) > limit
    page = rendering.render_page(context.work, (found[:limit], has_more), url, params.get("expand", ()))
    return {**page, "object": "search_result", "next_page": f"page_{found[limit - 1]['id']}" if has_more else None}


def _read(kind: str, query: str) -> tuple[list[_Clause], bool]:
    """Return the clauses of a query, and whether a match of any of them is enough (OR). Raises InvalidParameter."""
    matches = list(_matches(query))
    joints = {(match["joint"] or "AND").upper() for match in matches[:-1]}
    if len(joints) > 1:
        raise _unclear("AND and OR cannot be combined in one query.")
    if len(matches) > CLAUSES_MAX:
        raise _unclear(f"A query has at most {CLAUSES_MAX} clauses.")
    return [_clause(kind, match) for match in matches], joints == {"OR"}


def _matches(query: str) -> Iterator[re.Match[str]]:
    at = 0
    while at < len(query) or not query:
        match = _CLAUSE.match(query, at)
        if match is None:
            raise _unclear("We were unable to parse your search query.")
        yield match
        at = match.end()


def _clause(kind: str, match: re.Match[str]) -> _Clause:
    field, key, sign, value = match["field"], match["key"], match["operator"], match["value"]
    is_text = field in TEXTS[kind] or (field == "metadata" and key is not None)
    if not is_text and not (field in NUMBERS[kind] and key is None):
        raise _unclear(f"Field `{field}` is an unsupported search field for resource `{kind}s`.")
    is_null, quoted = value.lower() == "null", value[0] in "\"'"
    if not is_null and quoted != is_text:
        raise _unclear(f"Field `{field}` takes {'a text in quotes' if is_text else 'a number'}.")
    if sign not in ((":", "~") if is_text else (":", *COMPARISONS)) or (is_null and sign != ":"):
        raise _unclear(f"Field `{field}` does not support the operator {sign}.")
    plain = re.sub(r"\\(.)", r"\1", value[1:-1]) if quoted else value
    return _Clause(field, key, sign, None if is_null else plain, bool(match["negated"]))


def _unclear(message: str) -> errors.InvalidParameter:
    return errors.InvalidParameter(message, param="query")
