"""Credit notes: they lower what is still owed, and give back what was paid already."""

from stripe_sandbox import errors, state
from stripe_sandbox.api import forms, rendering, rules
from stripe_sandbox.api.context import Context
from stripe_sandbox.invoices import amounts, charging, invoicing
from stripe_sandbox.payments import payments, refunds
from stripe_sandbox.state import Json


def create(context: Context, params: forms.Params) -> Json:
    """Answer POST /v1/credit_notes. Raises Refused if the amounts do not fit the invoice."""
    invoice = context.work.get("invoice", params["invoice"], param="invoice")
    if invoice["status"] not in {"open", "paid", "uncollectible"}:
        raise errors.Refused("A credit note needs an invoice that is open, paid or uncollectible.", param="invoice")
    note_id = state.new_id("cn")
    data = _lines(invoice, params, note_id)
    total = sum(line["amount"] for line in data)
    credited = invoice["pre_payment_credit_notes_amount"] + invoice["post_payment_credit_notes_amount"]
    if not 0 < total <= invoice["total"] - credited:
        raise errors.Refused(
            f"A credit note for this invoice has an amount between 1 and {invoice['total'] - credited}.",
            param="amount",
        )
    before = min(total, invoice["amount_remaining"])
    made = {**_note(context, invoice, params, note_id), **_amounts(params, total, before)}
    made["lines"] = rendering.listed(data, f"/v1/credit_notes/{note_id}/lines")
    made["refunds"] = _given_back(context, invoice, params)
    changes: Json = {
        "amount_due": invoice["amount_due"] - before,
        "amount_remaining": invoice["amount_remaining"] - before,
        "post_payment_credit_notes_amount": invoice["post_payment_credit_notes_amount"] + total - before,
        "pre_payment_credit_notes_amount": invoice["pre_payment_credit_notes_amount"] + before,
    }
    context.add("credit_note", made, "credit_note.created")
    lowered = context.update(invoice, changes, "invoice.updated")
    if before and lowered["amount_remaining"] == 0:
        charging.settle(context, lowered)
    return context.show(made, params)


def _lines(invoice: Json, params: forms.Params, note_id: str) -> list[Json]:
    if ("amount" in params) == ("lines" in params):
        raise errors.InvalidParameter("Give either amount or lines.", param="amount")
    if "amount" in params:
        return [_line(note_id, params["amount"], "Credit", None)]
    of_invoice = {line["id"]: line for line in invoice["lines"]["data"]}
    data = []
    for index, each in enumerate(params["lines"]):
        param = f"lines[{index}]"
        if each["type"] == "custom_line_item":
            amount = amounts.of_units(
                str(each.get("unit_amount", each.get("unit_amount_decimal", 0))), each.get("quantity", 1)
            )
            data.append(_line(note_id, amount, each.get("description"), None))
            continue
        source = of_invoice.get(each.get("invoice_line_item", ""))
        if source is None:
            raise errors.Refused("No such line on the invoice.", param=f"{param}[invoice_line_item]")
        amount = each.get("amount")
        if amount is None:
            amount = amounts.share(source["amount"], each.get("quantity", source["quantity"]), source["quantity"] or 1)
        if not 0 < amount <= source["amount"]:
            raise errors.Refused(f"At most {source['amount']} of this line.", param=f"{param}[amount]")
        data.append(_line(note_id, amount, source["description"], source["id"]))
    return data


def _line(note_id: str, amount: int, description: str | None, source: str | None) -> Json:
    return {
        "id": state.new_id("cnli"),
        "object": "credit_note_line_item",
        "amount": amount,
        "credit_note": note_id,
        "description": description,
        "discount_amount": 0,
        "discount_amounts": [],
        "invoice_line_item": source,
        "livemode": False,
        "pretax_credit_amounts": [],
        "quantity": 1,
        "tax_rates": [],
        "taxes": [],
        "type": "invoice_line_item" if source else "custom_line_item",
        "unit_amount": amount,
        "unit_amount_decimal": str(amount),
    }


def _amounts(params: forms.Params, total: int, before: int) -> Json:
    """Return the amounts. Raises Refused unless the parts given back are exactly what was paid already."""
    parts = sum(params.get(name, 0) for name in ("refund_amount", "credit_amount", "out_of_band_amount"))
    if parts != total - before:
        raise errors.Refused(
            f"The sum of refund_amount, credit_amount and out_of_band_amount must be {total - before}.",
            param="out_of_band_amount",
        )
    kinds = {(True, True): "mixed", (True, False): "pre_payment", (False, True): "post_payment"}
    return {
        "amount": total,
        "out_of_band_amount": params.get("out_of_band_amount"),
        "post_payment_amount": total - before,
        "pre_payment_amount": before,
        "subtotal": total,
        "subtotal_excluding_tax": total,
        "total": total,
        "total_excluding_tax": total,
        "type": kinds[(before > 0, total > before)],
    }


def _given_back(context: Context, invoice: Json, params: forms.Params) -> list[Json]:
    if params.get("credit_amount"):
        invoicing.move_balance(context, invoice["customer"], -params["credit_amount"])
    amount = params.get("refund_amount")
    if not amount:
        return []
    made = refunds.refund(context, payments.charge_of(context, invoice), amount, None, {})
    return [{"amount_refunded": amount, "payment_record_refund": None, "refund": made["id"], "type": "refund"}]


def _note(context: Context, invoice: Json, params: forms.Params, note_id: str) -> Json:
    found = context.work.connection.execute(
        "SELECT count(*) FROM objects WHERE kind = 'credit_note' AND json_extract(body, '$.invoice') = ?",
        (invoice["id"],),
    ).fetchone()
    return {
        "id": note_id,
        "object": "credit_note",
        "amount_shipping": 0,
        "created": context.now,
        "currency": invoice["currency"],
        "customer": invoice["customer"],
        "customer_account": None,
        "customer_balance_transaction": None,
        "discount_amount": 0,
        "discount_amounts": [],
        "effective_at": context.now,
        "invoice": invoice["id"],
        "livemode": False,
        "memo": params.get("memo"),
        "metadata": rules.merged_metadata({}, params.get("metadata")),
        "number": f"{invoice['number']}-CN-{found[0] + 1:02}",
        "pdf": f"{invoice['invoice_pdf']}?credit_note={note_id}",
        "pretax_credit_amounts": [],
        "reason": params.get("reason"),
        "shipping_cost": None,
        "status": "issued",
        "total_taxes": [],
        "voided_at": None,
    }


def void(context: Context, params: forms.Params, note_id: str) -> Json:
    """Answer POST /v1/credit_notes/{id}/void, while the invoice is open: the amount is owed again."""
    note = context.work.get("credit_note", note_id)
    invoice = context.work.get("invoice", note["invoice"])
    if note["status"] != "issued" or invoice["status"] != "open":
        raise errors.Refused("Only a credit note that is issued for an open invoice can be voided.")
    amount = note["pre_payment_amount"]
    raised = {name: invoice[name] + amount for name in ("amount_due", "amount_remaining")}
    raised["pre_payment_credit_notes_amount"] = invoice["pre_payment_credit_notes_amount"] - amount
    context.update(invoice, raised, "invoice.updated")
    return context.show(
        context.update(note, {"status": "void", "voided_at": context.now}, "credit_note.voided"), params
    )


def retrieve(context: Context, params: forms.Params, note_id: str) -> Json:
    """Answer GET /v1/credit_notes/{id}."""
    return context.show(context.work.get("credit_note", note_id), params)


def list_all(context: Context, params: forms.Params) -> Json:
    """Answer GET /v1/credit_notes."""
    where: Json = {name: params[name] for name in ("customer", "invoice") if name in params}
    return context.show_list("credit_note", "/v1/credit_notes", where, params)


def list_lines(context: Context, params: forms.Params, note_id: str) -> Json:
    """Answer GET /v1/credit_notes/{id}/lines: all on one page, because a note has few."""
    del params
    found: Json = context.work.get("credit_note", note_id)["lines"]
    return found
