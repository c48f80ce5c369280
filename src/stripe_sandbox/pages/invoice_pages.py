"""The invoice's page, with its button to pay, and its PDF."""

import datetime as dt
import html
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from stripe_sandbox import errors, state
from stripe_sandbox.api import requests
from stripe_sandbox.invoices import charging
from stripe_sandbox.pages import layout

PDF_LINES_MAX = 60
"""The most lines on the PDF's only page."""


class InvoicePages:
    """The endpoints: GET shows an invoice; its button sends POST pay."""

    def __init__(self, sandbox: requests.Sandbox) -> None:
        self._sandbox = sandbox

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/invoice/{invoice_id}", self.show, methods=["GET"]),
            Route("/invoice/{invoice_id}/pdf", self.pdf, methods=["GET"]),
            Route("/invoice/{invoice_id}/pay", self.pay, methods=["POST"]),
        ]

    async def show(self, request: Request) -> Response:
        """Show the invoice's lines and the remaining amount."""
        invoice_id = request.path_params["invoice_id"]
        return await self._run(lambda work: layout.page(_body(_final(work, invoice_id)), "Sandbox invoice"))

    async def pdf(self, request: Request) -> Response:
        """Answer the invoice as a PDF."""
        invoice_id = request.path_params["invoice_id"]

        def work(work: state.Work) -> Response:
            invoice = _final(work, invoice_id)
            name = f'attachment; filename="{invoice["number"] or invoice_id}.pdf"'
            headers = {"Content-Disposition": name, "Cache-Control": "no-store"}
            return Response(_pdf(_text(invoice)), media_type="application/pdf", headers=headers)

        return await self._run(work)

    async def pay(self, request: Request) -> Response:
        """Pay an open invoice with a card that is used only for it; a second click pays nothing."""
        invoice_id = request.path_params["invoice_id"]

        def work(work: state.Work) -> Response:
            invoice = _final(work, invoice_id)
            if invoice["status"] == "open":
                with work.attempt():
                    charging.settle(self._sandbox.context(work), work.get("invoice", invoice_id))
            return RedirectResponse(f"/invoice/{invoice_id}", status_code=303)

        return await self._run(work)

    async def _run(self, work: Callable[[state.Work], Response]) -> Response:
        try:
            return await self._sandbox.store.run(work)
        except errors.ApiError as error:
            return layout.page(f"<h1>Not possible</h1><p>{html.escape(error.message)}</p>", status=error.status)
        finally:
            self._sandbox.delivery.wake()


def _final(work: state.Work, invoice_id: str) -> state.Json:
    """Return an invoice that customers may see. Raises NotFound, also for a draft."""
    invoice = work.get("invoice", invoice_id)
    if invoice["status"] == "draft":
        raise errors.NotFound("This invoice is not final yet.")
    found = [work.get("invoice_payment", each) for each in (invoice.get("payments") or {"data": []})["data"]]
    intents = [work.get("payment_intent", each["payment"]["payment_intent"]) for each in found]
    return {**invoice, "_action": any(each["status"] == "requires_action" for each in intents)}


def _rows(invoice: state.Json) -> list[tuple[str, str]]:
    currency = invoice["currency"]
    lines = [
        (each["description"] or each["id"], layout.money(each["amount"], currency)) for each in invoice["lines"]["data"]
    ]
    sums = [
        ("Discount", -sum(each["amount"] for each in invoice["total_discount_amounts"])),
        ("Tax", sum(each["amount"] for each in invoice["total_taxes"])),
    ]
    lines += [(said, layout.money(amount, currency)) for said, amount in sums if amount]
    return [*lines, ("Total", layout.money(invoice["total"], currency))]


def _title(invoice: state.Json) -> str:
    day = dt.datetime.fromtimestamp(invoice["created"], dt.UTC).strftime("%Y-%m-%d")
    return f"Invoice {invoice['number'] or invoice['id']} of {day}: {invoice['status']}"


def _body(invoice: state.Json) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(said)}</td><td>{html.escape(sum_)}</td></tr>" for said, sum_ in _rows(invoice)
    )
    action = html.escape(f"/invoice/{invoice['id']}")
    left = html.escape(layout.money(invoice["amount_remaining"], invoice["currency"]))
    verb = "Authenticate and pay" if invoice["_action"] else "Pay"
    pay = f'<form method="post" action="{action}/pay"><button class="pay">{verb} {left}</button></form>'
    return (
        f"<h1>{html.escape(_title(invoice))}</h1><table>{rows}</table>"
        f'{pay if invoice["status"] == "open" else ""}<p><a href="{action}/pdf">PDF</a></p>'
    )


def _text(invoice: state.Json) -> list[str]:
    return [_title(invoice), "", *(f"{said[:60]:<60} {sum_:>16}" for said, sum_ in _rows(invoice))][:PDF_LINES_MAX]


def _pdf(lines: list[str]) -> bytes:
    """Return a PDF of one page with lines of plain text."""
    escaped = [line.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)") for line in lines]
    shown = "\n".join(f"({line}) Tj T*" for line in escaped)
    content = f"BT /F1 9 Tf 40 800 Td 12 TL\n{shown}\nET".encode("latin-1", "replace")
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>",
        b"<</Length %d>>stream\n%s\nendstream" % (len(content), content),
        b"<</Type/Font/Subtype/Type1/BaseFont/Courier>>",
    ]
    file = bytearray(b"%PDF-1.4\n")
    places = []
    for number, each in enumerate(objects, start=1):
        places.append(len(file))
        file += b"%d 0 obj%s endobj\n" % (number, each)
    start = len(file)
    file += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    file += b"".join(b"%010d 00000 n \n" % place for place in places)
    file += b"trailer<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, start)
    return bytes(file)
