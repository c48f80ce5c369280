"""The checkout page: what a customer sees in a browser. Plain HTML without scripts; everything shown is escaped."""

import decimal
import html
import urllib.parse
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from stripe_sandbox import checkout, context, errors, forms, payment_methods, requests, state

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; background: #f4f5f7; color: #1d2330; margin: 0; }
main { max-width: 30rem; margin: 8vh auto; padding: 2rem; background: #fff; border-radius: 12px;
       box-shadow: 0 1px 4px rgb(0 0 0 / 15%); }
h1 { font-size: 1.3rem; margin: 0 0 1rem; } h2 { font-size: 1.05rem; margin: 1.5rem 0 .5rem; }
table { width: 100%; border-collapse: collapse; }
td { padding: .6rem 0; border-bottom: 1px solid #e5e7eb; vertical-align: top; }
td:last-child { text-align: right; white-space: nowrap; padding-left: 1rem; }
small { color: #6b7280; display: block; }
form { margin: .75rem 0 0; } button + button { margin-top: .5rem; }
button { width: 100%; padding: .75rem; font: inherit; border: 0; border-radius: 8px; cursor: pointer; }
.pay { background: #4f46e5; color: #fff; } .cancel { background: #e5e7eb; color: #1d2330; }
.note { color: #6b7280; font-size: .85rem; margin: 1.5rem 0 0; }
"""

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
}

MINOR_DIGITS = dict.fromkeys(
    ("bif", "clp", "djf", "gnf", "jpy", "kmf", "krw", "mga", "pyg", "rwf", "ugx", "vnd", "vuv", "xaf", "xof", "xpf"), 0
)
"""Currencies without minor units; all others are shown with two digits."""


OTHER_CARDS = {"works_once": "Pay with a card that is declined later", "declines": "Try a card that is declined"}

FORM_BYTES_MAX = 4096
"""Far above any form of the pages."""


class CheckoutPages:
    """GET shows the page, POST pay and POST cancel are its buttons."""

    def __init__(self, sandbox: requests.Sandbox) -> None:
        self._sandbox = sandbox

    async def show(self, request: Request) -> Response:
        """Show what is to be paid; 410 once the session is over."""
        session_id = request.path_params["session_id"]

        def work(work: state.Work) -> Response:
            scope = self._sandbox.context(work)
            session = checkout.current(scope, session_id)
            return page(_body(scope, session)) if session["status"] == "open" else _over(session)

        return await self._run(work)

    async def pay(self, request: Request) -> Response:
        """Pay and go to the success URL. A second click ends there too, having paid nothing more.

        The field `card` says with which: one that `works`, one that `declines`, or one that works this once.
        """
        session_id = request.path_params["session_id"]
        card = (await fields(request)).get("card", "works")
        wants_json = "application/json" in request.headers.get("accept", "")

        def work(work: state.Work) -> Response:
            scope = self._sandbox.context(work)
            chosen = payment_methods.DECLINES if card == "declines" else payment_methods.WORKS
            session = checkout.pay(scope, session_id, chosen)
            if card == "works_once" and session["customer"]:
                payment_methods.change(scope, session["customer"], "declines")
            if session["status"] != "complete":
                return _over(session)
            escaped = urllib.parse.quote(session["id"], safe="")
            target = session["success_url"].replace("{CHECKOUT_SESSION_ID}", escaped)
            if wants_json:
                shown = {name: session[name] for name in ("id", "status", "customer", "subscription", "invoice")}
                return JSONResponse({**shown, "redirect": target})
            return RedirectResponse(target, status_code=303)

        return await self._run(work)

    async def cancel(self, request: Request) -> Response:
        """Go back without paying; the session stays open."""
        session_id = request.path_params["session_id"]

        def work(work: state.Work) -> Response:
            session = checkout.current(self._sandbox.context(work), session_id)
            if session["status"] != "open":
                return _over(session)
            if session["cancel_url"] is None:
                return page("<h1>Not paid</h1><p>You can close this page.</p>")
            return RedirectResponse(session["cancel_url"], status_code=303)

        return await self._run(work)

    async def _run(self, work: Callable[[state.Work], Response]) -> Response:
        try:
            return await self._sandbox.store.run(work)
        except errors.ApiError as error:
            return page(f"<h1>Not possible</h1><p>{html.escape(error.message)}</p>", status=error.status)
        finally:
            self._sandbox.delivery.wake()


async def fields(request: Request) -> dict[str, str]:
    """Give the fields of a page's form; none where it is no form of ours."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > FORM_BYTES_MAX:
            return {}
    try:
        return {name: value for name, value in forms.decode(bytes(body)).items() if isinstance(value, str)}
    except errors.InvalidParameter:
        return {}


def page(body: str, title: str = "Sandbox checkout", status: int = 200) -> HTMLResponse:
    """Give a page; the body is HTML."""
    return HTMLResponse(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body><main>{body}"
        '<p class="note">A sandbox on this machine: no money moves.</p></main></body></html>',
        status_code=status,
        headers=HEADERS,
    )


def _over(session: state.Json) -> HTMLResponse:
    said = {"complete": "This checkout has been paid.", "expired": "This checkout has expired."}
    return page(f"<h1>{said[session['status']]}</h1><p>You can close this page.</p>", status=410)


def _body(scope: context.Context, session: state.Json) -> str:
    rows = "".join(_row(scope, item) for item in session["line_items"]["data"])
    customer = scope.work.find("customer", session["customer"]) if session["customer"] else None
    email = (customer or {}).get("email") or session["customer_email"] or "no e-mail address yet"
    action = html.escape(f"/checkout/{session['id']}")
    total = html.escape(money(decimal.Decimal(session["amount_total"]), session["currency"]))
    trial = session["subscription_data"].get("trial_period_days")
    buttons = f'<button class="pay" name="card" value="works">Pay {total}</button>' + "".join(
        f'<button class="cancel" name="card" value="{choice}">{html.escape(said)}</button>'
        for choice, said in OTHER_CARDS.items()
    )
    trial_note = f"<p>{int(trial)} days free, then the prices above.</p>" if trial else ""
    return (
        f"<h1>Subscribe</h1><p>{html.escape(email)}</p><table>{rows}"
        f"<tr><td><strong>Due today</strong></td><td><strong>{total}</strong></td></tr></table>{trial_note}"
        f'<form method="post" action="{action}/pay">{buttons}</form>'
        f'<form method="post" action="{action}/cancel"><button class="cancel">Cancel</button></form>'
    )


def _row(scope: context.Context, item: state.Json) -> str:
    price = scope.work.get("price", item["price"])
    each = money(decimal.Decimal(price["unit_amount_decimal"]), price["currency"])
    recurring = price["recurring"]
    period = ""
    if recurring:
        count = recurring["interval_count"]
        period = f" a {recurring['interval']}" if count == 1 else f" every {count} {recurring['interval']}s"
    if item["quantity"] is None:
        terms, amount = f"{each} for each unit used", "as used"
    else:
        terms, amount = f"{item['quantity']} x {each}{period}", money(item["amount_total"], price["currency"])
    name = price["nickname"] or item["description"]
    return f"<tr><td>{html.escape(name)}<small>{html.escape(terms)}</small></td><td>{html.escape(amount)}</td></tr>"


def money(minor: decimal.Decimal | int, currency: str) -> str:
    """Write an amount of minor units for people: at least the currency's digits, more if it has them."""
    digits = MINOR_DIGITS.get(currency, 2)
    major = decimal.Decimal(minor).scaleb(-digits)
    exponent = major.normalize().as_tuple().exponent
    places = max(digits, -exponent if isinstance(exponent, int) else 0)
    return f"{major:,.{places}f} {currency.upper()}"
