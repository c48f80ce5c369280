"""The totals of an invoice: its lines, less discounts, plus a flat tax, less the customer's credit."""

from stripe_sandbox.invoices import amounts, discounts
from stripe_sandbox.state import Json, Work

TAX_BASIS_POINTS = "tax_basis_points"
"""The stored fact with the tax on every draft, in hundredths of a percent; 0: no tax."""

WHOLE = 10_000

MINIMUMS = {
    "aed": 200,
    "aud": 50,
    "brl": 50,
    "cad": 50,
    "chf": 50,
    "czk": 1500,
    "dkk": 250,
    "eur": 50,
    "gbp": 30,
    "hkd": 400,
    "huf": 17500,
    "inr": 50,
    "jpy": 50,
    "mxn": 1000,
    "myr": 200,
    "nok": 300,
    "nzd": 50,
    "pln": 200,
    "ron": 200,
    "sek": 300,
    "sgd": 50,
    "thb": 1000,
    "usd": 50,
}
"""The smallest charge of each currency, in minor units; the sandbox knows none for other currencies."""


def counted(work: Work, invoice: Json, data: list[Json]) -> Json:
    """Return the invoice's fields for these lines; `data` is the list of lines.

    The customer's credit pays first. A total below zero becomes credit when the invoice is finalised, and a total below
    the smallest charge is owed with the next invoice.
    """
    shown = _taxed(discounts.taken_off(work, invoice["discounts"], data), work.fact(TAX_BASIS_POINTS))
    subtotal = sum(line["amount"] for line in shown)
    off = [each for line in shown for each in line["discount_amounts"]]
    taxes = [each for line in shown for each in line["taxes"]]
    tax = sum(each["amount"] for each in taxes)
    net = subtotal - sum(each["amount"] for each in off)
    balance = work.get("customer", invoice["customer"]).get("balance", 0)
    due = _charged(net + tax + balance, invoice["currency"])
    by_discount = {each: sum(one["amount"] for one in off if one["discount"] == each) for each in invoice["discounts"]}
    return {
        "lines": {**invoice["lines"], "data": shown},
        "subtotal": subtotal,
        "subtotal_excluding_tax": subtotal,
        "total": net + tax,
        "total_excluding_tax": net,
        "total_discount_amounts": [{"amount": amount, "discount": each} for each, amount in by_discount.items()],
        "total_taxes": [_tax(tax, sum(each["taxable_amount"] for each in taxes))] if taxes else [],
        "amount_due": due,
        "amount_remaining": due,
        "starting_balance": balance,
    }


def _charged(owed: int, currency: str) -> int:
    """Return what is charged now."""
    return owed if owed >= MINIMUMS.get(currency, 1) else 0


def _taxed(data: list[Json], basis_points: int) -> list[Json]:
    taxed = []
    for line in data:
        base = line["amount"] - sum(each["amount"] for each in line["discount_amounts"])
        taxes = [_tax(amounts.share(base, basis_points, WHOLE), base)] if basis_points else []
        taxed.append({**line, "taxes": taxes})
    return taxed


def _tax(amount: int, of_amount: int) -> Json:
    return {
        "amount": amount,
        "tax_behavior": "exclusive",
        "tax_rate_details": None,
        "taxability_reason": "standard_rated",
        "taxable_amount": of_amount,
        "type": "tax_rate_details",
    }
