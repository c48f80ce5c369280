"""The checkout page: plain HTML without scripts; all values are escaped."""

import decimal
import html
import urllib.parse
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from stripe_sandbox import errors, state
from stripe_sandbox.api import context, requests
from stripe_sandbox.customers import checkout, payment_methods
from stripe_sandbox.pages import layout

OTHER_CARDS = {
    "works_once": "Pay with a card that is declined later",
    "requires_action": "Pay with a card that needs an authentication each time",
    "debit": "Pay by a bank debit, which takes four days",
    "debit_fails": "Pay by a bank debit that fails after four days",
    "declines": "Try a card that is declined",
}


class CheckoutPages:
    """The endpoints: GET shows the page; its buttons send POST pay and POST cancel."""

    def __init__(self, sandbox: requests.Sandbox) -> None:
        self._sandbox = sandbox

    async def show(self, request: Request) -> Response:
        """Show the checkout; answers 410 when the session is over."""
        session_id = request.path_params["session_id"]

        def work(work: state.Work) -> Response:
            scope = self._sandbox.context(work)
            session = checkout.current(scope, session_id)
            return layout.page(_body(scope, session)) if session["status"] == "open" else _over(session)

        return await self._run(work)

    async def pay(self, request: Request) -> Response:
        """Pay, and redirect to the success URL; a second click only redirects.

        The field `card` names the card: one of `OTHER_CARDS`, or `works`.
        """
        session_id = request.path_params["session_id"]
        card = (await layout.fields(request)).get("card", "works")
        wants_json = "application/json" in request.headers.get("accept", "")

        def work(work: state.Work) -> Response:
            scope = self._sandbox.context(work)
            chosen = payment_methods.CHOICES.get(card, payment_methods.WORKS)
            session = checkout.pay(scope, session_id, chosen)
            if card == "works_once" and session["subscription"]:
                payment_methods.replace(scope, session["subscription"], payment_methods.DECLINES)
            if session["status"] != "complete":
                return _over(session)
            escaped = urllib.parse.quote(session["id"], safe="")
            target = (session["success_url"] or "").replace("{CHECKOUT_SESSION_ID}", escaped) or None
            if wants_json:
                shown = {name: session[name] for name in ("id", "status", "customer", "subscription", "invoice")}
                return JSONResponse({**shown, "redirect": target})
            if target is None:
                return layout.page("<h1>Thanks for your payment</h1><p>You can close this page.</p>")
            return RedirectResponse(target, status_code=303)

        return await self._run(work)

    async def cancel(self, request: Request) -> Response:
        """Leave the checkout without paying; the session stays open."""
        session_id = request.path_params["session_id"]

        def work(work: state.Work) -> Response:
            session = checkout.current(self._sandbox.context(work), session_id)
            if session["status"] != "open":
                return _over(session)
            if session["cancel_url"] is None:
                return layout.page("<h1>Not paid</h1><p>You can close this page.</p>")
            return RedirectResponse(session["cancel_url"], status_code=303)

        return await self._run(work)

    async def _run(self, work: Callable[[state.Work], Response]) -> Response:
        try:
            return await self._sandbox.store.run(work)
        except errors.ApiError as error:
            return layout.page(f"<h1>Not possible</h1><p>{html.escape(error.message)}</p>", status=error.status)
        finally:
            self._sandbox.delivery.wake()


def _over(session: state.Json) -> HTMLResponse:
    said = {"complete": "This checkout has been paid.", "expired": "This checkout has expired."}
    return layout.page(f"<h1>{said[session['status']]}</h1><p>You can close this page.</p>", status=410)


def _body(scope: context.Context, session: state.Json) -> str:
    rows = "".join(_row(scope, item) for item in session["line_items"]["data"])
    customer = scope.work.find("customer", session["customer"]) if session["customer"] else None
    email = (customer or {}).get("email") or session["customer_email"] or "no e-mail address yet"
    action = html.escape(f"/checkout/{session['id']}")
    total = html.escape(layout.money(decimal.Decimal(session["amount_total"]), session["currency"]))
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
    each = layout.money(decimal.Decimal(price["unit_amount_decimal"]), price["currency"])
    recurring = price["recurring"]
    period = ""
    if recurring:
        count = recurring["interval_count"]
        period = f" a {recurring['interval']}" if count == 1 else f" every {count} {recurring['interval']}s"
    if item["quantity"] is None:
        terms, amount = f"{each} for each unit used", "as used"
    else:
        terms, amount = f"{item['quantity']} x {each}{period}", layout.money(item["amount_total"], price["currency"])
    name = price["nickname"] or item["description"]
    return f"<tr><td>{html.escape(name)}<small>{html.escape(terms)}</small></td><td>{html.escape(amount)}</td></tr>"
