"""Money is exact: no floating point comes near it."""

import ast
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from billing_svc.api import fields
from billing_svc.catalog import loading
from billing_svc.platform import money
from billing_svc.pricing import rules as pricing_rules
from tests.billing_svc.service import CATALOGS

SRC = Path(__file__).parents[3] / "src" / "billing_svc"
# Files whose numbers may be money. Elsewhere floats are seconds.
MONEY_FILES = {
    "rules.py",
    "terms.py",
    "periods.py",
    "model.py",
    "money.py",
    "notation.py",
    "tables.py",
    "conversions.py",
}
MONEY_FOLDERS = {"catalog", "quota", "usage", "subscriptions", "stripe", "invoices", "alerts"}
# How YAML's numbers with a point are marked, before they are refused.
ALLOWED = {"catalog/loading.py 0.5"}


def _files() -> list[Path]:
    return sorted(
        file
        for file in SRC.rglob("*.py")
        if file.name in MONEY_FILES or MONEY_FOLDERS & set(file.relative_to(SRC).parts[:-1])
    )


def _floats(tree: ast.Module) -> Iterator[tuple[int, str]]:
    # Names that end in seconds, and what an error says about when to repeat.
    timed = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise)
        or (isinstance(node, ast.Assign | ast.AnnAssign) and "seconds" in ast.unparse(node).partition("=")[0].lower())
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in timed:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, float):
            yield node.lineno, repr(node.value)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"float", "round"}:
            yield node.lineno, node.func.id
        elif isinstance(node, ast.Attribute) and node.attr in {"Float", "REAL", "DOUBLE_PRECISION", "Double"}:
            yield node.lineno, node.attr
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            yield node.lineno, "/"


def test_no_float_comes_near_money() -> None:
    files = _files()
    assert len(files) > 20
    found = [
        f"{file.relative_to(SRC)}:{line} {what}"
        for file in files
        for line, what in _floats(ast.parse(file.read_text()))
        if f"{file.relative_to(SRC)} {what}" not in ALLOWED
    ]
    assert found == []


def test_no_message_of_the_contract_has_a_float() -> None:
    proto = SRC.parents[1] / "proto" / "billing" / "v1"
    lines = [line.split("//")[0].split() for file in proto.glob("*.proto") for line in file.read_text().splitlines()]
    assert lines
    assert [line for line in lines if {"float", "double"} & set(line)] == []


@pytest.mark.parametrize(
    ("catalog", "plan", "meter", "units", "cost"),
    [
        ("nyqst", "pro", "runs", 1, "0.50"),
        ("nyqst", "pro", "runs", 10**12, "500000000000"),
        ("agentplatform", "standard", "llm_tokens", 1, "0.00001"),
        ("agentplatform", "standard", "llm_tokens", 500_000, "5"),
        ("agentplatform", "enterprise", "llm_tokens", 3, "0.000015"),
        ("agentplatform", "enterprise", "api_calls", 10**12 + 1, "500000000.0005"),
    ],
)
def test_costs_are_exact_at_any_size(catalog: str, plan: str, meter: str, units: int, cost: str) -> None:
    limit = loading.load_file(CATALOGS / f"{catalog}.yaml").plans[plan].limit(meter, pay_as_you_go=False)
    assert limit is not None
    assert pricing_rules.overage(limit, units) == Decimal(cost)


@pytest.mark.parametrize(
    ("currency", "minor_units", "shown"),
    [
        ("usd", 150, "1.50"),
        ("jpy", 150, "150"),
        ("kwd", 1_500, "1.500"),
        ("isk", 50_000, "500.00"),
        ("ugx", 50_000, "500.00"),
        ("huf", 150, "1.50"),
        ("xof", -7, "-7"),
        ("xyz", 150, "1.50"),  # newer than the table
    ],
)
def test_an_amount_in_any_currency_is_shown_as_stripe_writes_it(currency: str, minor_units: int, shown: str) -> None:
    assert fields.to_proto_money(money.major_units(minor_units, currency), currency).amount == shown


def test_the_table_has_stripe_s_exceptions() -> None:
    """The lists of "Supported currencies" in Stripe's documentation; all other currencies have two places."""
    no_places = "bif clp djf gnf jpy kmf krw mga pyg rwf vnd vuv xaf xof xpf"
    three_places = "bhd jod kwd omr tnd"
    exceptions = {currency: places for currency, places in money.EXPONENTS.items() if places != 2}
    assert exceptions == {**dict.fromkeys(no_places.split(), 0), **dict.fromkeys(three_places.split(), 3)}
    assert len(money.EXPONENTS) > 130
    steps = {currency: money.step(currency) for currency in money.EXPONENTS if money.step(currency) > 1}
    assert steps == {"isk": 100, "ugx": 100, **dict.fromkeys(three_places.split(), 10)}
