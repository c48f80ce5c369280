"""The root page: what there is in the sandbox, with links to the pages."""

import datetime as dt
import html
from collections.abc import Iterable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from stripe_sandbox import state
from stripe_sandbox.api import requests
from stripe_sandbox.pages import layout
from stripe_sandbox.time import timeline

SHOWN_MAX = 50
"""The most objects of a kind on the page, the newest first."""

Cell = tuple[str, str | None]
"""A text, and the address that it links to."""


class HomePage:
    """The endpoint: GET / shows the page."""

    def __init__(self, sandbox: requests.Sandbox, time: timeline.Timeline) -> None:
        self._sandbox = sandbox
        self._timeline = time

    def routes(self) -> list[Route]:
        """Return the route."""
        return [Route("/", self.show, methods=["GET"])]

    async def show(self, _: Request) -> Response:
        """Show the clock, the faults, customers, subscriptions, invoices and the pages where something is sold."""
        clock = self._sandbox.clock
        following = await self._timeline.next_due()
        rows = [("Now", _at(clock.now())), ("Moved by", f"{dt.timedelta(seconds=clock.offset_seconds)}")]
        if following:
            rows.append(("Next", f"{_at(following.at)}: {following.subject} {following.what}"))
        time = _table([((said, None), (value, None)) for said, value in rows])
        sections = await self._sandbox.store.run(_sections)
        faults = [_fault(each) for each in self._sandbox.faults.shown()]
        body = f"<h1>Stripe sandbox</h1>{time}{_section('Faults', faults, len(faults))}{sections}"
        return layout.page(body, "Stripe sandbox", wide=True)


def _sections(work: state.Work) -> str:
    kinds = (
        ("Customers", "customer", _customer),
        ("Subscriptions", "subscription", _subscription),
        ("Invoices", "invoice", _invoice),
        ("Checkout sessions", "checkout.session", _session),
        ("Payment links", "payment_link", _link),
    )
    parts = []
    for title, kind, row in kinds:
        found, _ = work.select(kind, {}, state.Page(SHOWN_MAX))
        (count,) = work.connection.execute("SELECT count(*) FROM objects WHERE kind = ?", (kind,)).fetchone()
        parts.append(_section(title, [row(each) for each in found], count))
    return "".join(parts)


def _section(title: str, rows: list[tuple[Cell, ...]], count: int) -> str:
    shown = f" (the newest {len(rows)} of {count})" if count > len(rows) else f" ({count})"
    return f"<h2>{html.escape(title + shown)}</h2>{_table(rows)}"


def _table(rows: Iterable[tuple[Cell, ...]]) -> str:
    lines = "".join(f"<tr>{''.join(f'<td>{_cell(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table>{lines}</table>"


def _cell(cell: Cell) -> str:
    text, address = cell
    return f'<a href="{html.escape(address)}">{html.escape(text)}</a>' if address else html.escape(text)


def _at(unix: int) -> str:
    return f"{dt.datetime.fromtimestamp(unix, dt.UTC):%Y-%m-%d %H:%M:%S} UTC"


def _fault(shown: dict[str, object]) -> tuple[Cell, ...]:
    where = f"{shown.get('method', '*')} {shown.get('path', '*')}"
    return (f"{shown['id']}: {shown['kind']}", None), (where, None), (f"{shown['struck']} times", None)


def _customer(customer: state.Json) -> tuple[Cell, ...]:
    if customer.get("deleted"):
        return (customer["id"], None), ("deleted", None), ("", None)
    about = ", ".join(f"{name}={value}" for name, value in customer["metadata"].items())
    return (customer["id"], None), (customer["email"] or "", None), (about, None)


def _subscription(subscription: state.Json) -> tuple[Cell, ...]:
    ends = min(item["current_period_end"] for item in subscription["items"]["data"])
    sold = ", ".join(f"{item.get('quantity', 'metered')} × {item['price']}" for item in subscription["items"]["data"])  # noqa: RUF001 - as Stripe writes it
    about = f"{subscription['customer']}: {sold}"
    return (subscription["id"], None), (about, None), (f"{subscription['status']}, until {_at(ends)}", None)


def _invoice(invoice: state.Json) -> tuple[Cell, ...]:
    address = None if invoice["status"] == "draft" else f"/invoice/{invoice['id']}"
    total = layout.money(invoice["total"], invoice["currency"])
    return (invoice["id"], address), (invoice["customer"], None), (f"{invoice['status']}, {total}", None)


def _session(session: state.Json) -> tuple[Cell, ...]:
    address = f"/checkout/{session['id']}" if session["status"] == "open" else None
    return (session["id"], address), (session["customer"] or "", None), (session["status"], None)


def _link(link: state.Json) -> tuple[Cell, ...]:
    address = f"/pay/{link['id']}" if link["active"] else None
    return (link["id"], address), ("", None), ("active" if link["active"] else "inactive", None)
