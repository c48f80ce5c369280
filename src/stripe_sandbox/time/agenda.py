"""Lists the due changes of subscriptions and invoices, for the timeline."""

from collections.abc import Iterator

from stripe_sandbox import state
from stripe_sandbox.api.context import Context
from stripe_sandbox.invoices import charging
from stripe_sandbox.payments import debits
from stripe_sandbox.subscriptions import renewals
from stripe_sandbox.time import due


def upcoming(work: state.Work) -> Iterator[due.Due]:
    """Yield the next change of every object that has one, the earliest first."""
    rows = work.connection.execute(
        "SELECT id, kind, due, due_what FROM objects WHERE due IS NOT NULL ORDER BY due, seq"
    ).fetchall()
    acts = {"subscription": renewals.act, "invoice": _invoice}
    for subject, kind, at, what in rows:
        yield due.Due(at, what, subject, acts[kind])


def _invoice(context: Context, invoice_id: str) -> None:
    invoice = context.work.get("invoice", invoice_id)
    if invoice["status"] == "draft":
        charging.finalise_and_collect(context, invoice)
    elif debits.on_its_way(invoice):
        charging.debit_ended(context, invoice)
    else:
        charging.collect(context, invoice)
