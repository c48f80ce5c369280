"""The portal's page: plain HTML without scripts; all values are escaped."""

import datetime as dt
import html
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from stripe_sandbox import errors, state
from stripe_sandbox.api import context, forms, requests
from stripe_sandbox.customers import payment_methods, portal
from stripe_sandbox.pages import layout

Act = Callable[[portal.Visit, forms.Params], state.Json | None]

CARDS = {
    "works": "a card that works",
    "declines": "a card that is declined",
    "requires_action": "a card that needs an authentication each time",
    "debit": "a bank account",
    "debit_fails": "a bank account whose debits fail",
    "none": "no card",
}


class PortalPages:
    """The endpoints: GET shows the portal; each of its buttons sends a POST."""

    def __init__(self, sandbox: requests.Sandbox) -> None:
        self._sandbox = sandbox

    def routes(self) -> list[Route]:
        """Return the routes."""
        buttons: dict[str, Act] = {
            "card": lambda visit, given: visit.change_card(given.get("card", "")),
            "cancel": lambda visit, given: visit.cancel(given.get("subscription", ""), given.get("feedback")),
            "renew": lambda visit, given: visit.renew(given.get("subscription", "")),
            "pay": lambda visit, given: visit.pay(given.get("invoice", "")),
        }
        acts = [
            Route(f"/portal/{{session_id}}/{name}", self._button(act), methods=["POST"])
            for name, act in buttons.items()
        ]
        return [Route("/portal/{session_id}", self.show, methods=["GET"]), *acts]

    async def show(self, request: Request) -> Response:
        """Show the customer's card, subscriptions and invoices."""

        def work(work: state.Work) -> Response:
            scope = self._sandbox.context(work)
            return layout.page(_body(scope, portal.Visit(scope, request.path_params["session_id"])), "Sandbox portal")

        return await self._run(work)

    def _button(self, act: Act) -> Callable[[Request], object]:
        async def pressed(request: Request) -> Response:
            session_id = request.path_params["session_id"]
            given = await layout.fields(request)
            wants_json = "application/json" in request.headers.get("accept", "")

            def work(work: state.Work) -> Response:
                with work.attempt():
                    changed = act(portal.Visit(self._sandbox.context(work), session_id), given)
                if wants_json:
                    return JSONResponse({"id": changed["id"] if changed else None})
                return RedirectResponse(f"/portal/{session_id}", status_code=303)

            return await self._run(work)

        return pressed

    async def _run(self, work: Callable[[state.Work], Response]) -> Response:
        try:
            return await self._sandbox.store.run(work)
        except errors.ApiError as error:
            return layout.page(
                f"<h1>Not possible</h1><p>{html.escape(error.message)}</p>", "Sandbox portal", error.status
            )
        finally:
            self._sandbox.delivery.wake()


def _body(scope: context.Context, visit: portal.Visit) -> str:
    action = html.escape(f"/portal/{visit.session['id']}")
    flow = (visit.session["flow"] or {}).get("type")
    parts = ["<h1>Your billing</h1>"]
    if flow in {None, "subscription_cancel"}:
        parts += [_subscription(scope, visit, each, action) for each in visit.subscriptions()]
    if flow in {None, "payment_method_update"} and visit.features["payment_method_update"]["enabled"]:
        parts.append(_card(visit.card(), action))
    if flow is None and visit.features["invoice_history"]["enabled"]:
        rows = "".join(_invoice(invoice, action) for invoice in visit.invoices())
        parts.append(f"<h2>Invoices</h2><table>{rows}</table>" if rows else "<h2>Invoices</h2><p>None yet.</p>")
    if visit.session["return_url"]:
        parts.append(f'<p><a href="{html.escape(visit.session["return_url"])}">Back</a></p>')
    return "".join(parts)


def _subscription(scope: context.Context, visit: portal.Visit, subscription: state.Json, action: str) -> str:
    names = []
    for item in subscription["items"]["data"]:
        price = scope.work.get("price", item["price"])
        name = price["nickname"] or scope.work.get("product", price["product"])["name"]
        names.append(f"{item['quantity']} x {name}" if item.get("quantity", 1) != 1 else name)
    ends_at = subscription["cancel_at"]
    end = min(item["current_period_end"] for item in subscription["items"]["data"])
    terms = f"ends on {_day(ends_at)}" if ends_at else f"renews on {_day(end)}"
    shown = (
        f"<h2>{html.escape(', '.join(names))}</h2>"
        f"<p>{html.escape(subscription['status'].replace('_', ' '))}, {terms}</p>"
    )
    if not visit.features["subscription_cancel"]["enabled"]:
        return shown
    hidden = f'<input type="hidden" name="subscription" value="{html.escape(subscription["id"])}">'
    if ends_at:
        return shown + _form(f"{action}/renew", f'{hidden}<button class="pay">Keep the plan</button>')
    reason = visit.features["subscription_cancel"]["cancellation_reason"]
    if reason["enabled"]:
        options = "".join(
            f'<option value="{html.escape(each)}">{html.escape(each.replace("_", " "))}</option>'
            for each in reason["options"]
        )
        hidden += f'<select name="feedback"><option value="">no reason</option>{options}</select>'
    return shown + _form(f"{action}/cancel", f'{hidden}<button class="cancel">Cancel the plan</button>')


def _card(card: state.Json | None, action: str) -> str:
    kind = (card or {}).get("card", {}).get("brand", "bank account").title()
    now = f"{kind} ending in {payment_methods.last_digits(card)}" if card else "none"
    buttons = "".join(
        f'<button class="cancel" name="card" value="{choice}">Use {html.escape(said)}</button>'
        for choice, said in CARDS.items()
    )
    assert set(CARDS) == {*payment_methods.CHOICES, "none"}  # noqa: S101 - all that can be chosen
    return f"<h2>Payment method</h2><p>{html.escape(now)}</p>{_form(f'{action}/card', buttons)}"


def _invoice(invoice: state.Json, action: str) -> str:
    amount = html.escape(layout.money(invoice["total"], invoice["currency"]))
    number = html.escape(invoice["number"] or invoice["id"])
    if invoice["hosted_invoice_url"]:
        number = f'<a href="{html.escape(invoice["hosted_invoice_url"])}">{number}</a>'
    pay = ""
    if invoice["status"] == "open":
        hidden = f'<input type="hidden" name="invoice" value="{html.escape(invoice["id"])}">'
        pay = _form(f"{action}/pay", f'{hidden}<button class="pay">Pay</button>')
    said = f"{_day(invoice['created'])}, {html.escape(invoice['status'])}"
    return f"<tr><td>{number}<small>{said}</small></td><td>{amount}{pay}</td></tr>"


def _form(action: str, inner: str) -> str:
    return f'<form method="post" action="{action}">{inner}</form>'


def _day(at: int) -> str:
    return dt.datetime.fromtimestamp(at, dt.UTC).strftime("%Y-%m-%d")
