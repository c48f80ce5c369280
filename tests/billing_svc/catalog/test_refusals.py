"""What a catalog may not say, and that the error names the line and the path of the place."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billing_svc.catalog import loading, model
from billing_svc.pricing import rules as pricing_rules

# Line numbers matter to the tests below: line 1 is `catalog:`.
GOOD = """\
catalog: shop
currency: usd
default_plan: free
free_period: calendar_month
alert_percents: [80, 100]
grace_period: 24h
meters:
  runs: {unit: run, kind: consumable, operations: {small: 1, large: 5}}
  seats: {unit: seat, kind: gauge}
plans:
  free:
    name: Free
    limits:
      runs:
        included: 5
        beyond: deny
    pay_as_you_go:
      name: On demand
      limits:
        runs: {included: 5, beyond: charge, unit_price: "0.5"}
  pro:
    name: Pro
    prices:
      monthly: {amount: 20, interval: month}
    limits:
      runs: {included: 200, beyond: charge, unit_price: "0.50"}
      seats: {included: 3, beyond: deny}
    rate_limit: {requests: 10, per: minute}
  team:
    name: Team
    prices:
      monthly: {amount: "8.00", interval: month, per_seat: true}
    limits:
      seats: {included: 1, beyond: deny, per_seat: true}
"""

FREE = "plans.free.limits.runs"
OVERLAY = "plans.free.pay_as_you_go"
PRO = "plans.pro.limits.runs"
MORE = """\
    pay_as_you_go:
      name: More
      limits: {runs: {included: 1, beyond: charge, unit_price: "1"}}
"""
AMOUNT = "must be a whole number or, for an amount of money, text in quotes such as"


def errors_of(text: str | bytes, tmp_path: Path) -> tuple[str, ...]:
    file = tmp_path / "x.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(loading.CatalogError) as caught:
        loading.load_file(file)
    assert all("\n" not in line for line in caught.value.errors)
    return tuple(line.removeprefix(f"{tmp_path}/") for line in caught.value.errors)


def refusal_of(load: Callable[[], model.Catalog]) -> tuple[str, ...]:
    """Return the errors, none for a catalog that was loaded."""
    try:
        load()
    except loading.CatalogError as error:
        return error.errors or ("an error without a line\n",)
    return ()


def test_the_catalog_that_the_cases_change_is_good() -> None:
    catalog = loading.load_text(GOOD, "x.yaml")
    assert catalog.default.key == "free"


REFUSED = {
    # numbers
    "negative quantity": ("included: 5\n", "included: -1\n", f"15: {FREE}.included: must be >= 0"),
    "huge quantity": ("included: 5\n", f"included: {10**15 + 1}\n", f"15: {FREE}.included: must be <= {10**15}"),
    "beyond int64": ("included: 5\n", f"included: {2**63}\n", f"15: {FREE}.included: must be <= {10**15}"),
    "endless digits": ("included: 5\n", f"included: {'9' * 5000}\n", f"15: {FREE}.included: "),
    "hexadecimal quantity": ("included: 5\n", "included: 0x5\n", f"15: {FREE}.included: "),
    "fractional quantity": ("included: 5\n", "included: 5.5\n", f"15: {FREE}.included: must be a whole number, or"),
    "quantity as text": ("included: 5\n", 'included: "5"\n', f"15: {FREE}.included: must be a whole number, or"),
    "quantity as a boolean": ("included: 5\n", "included: true\n", f"15: {FREE}.included: must be a whole number, or"),
    "quantity that is not a number": ("included: 5\n", "included: .nan\n", f"15: {FREE}.included: "),
    "no quantity": ("included: 5\n", "included:\n", f"15: {FREE}.included: must be a whole number, or"),
    "cost of nothing": ("small: 1", "small: 0", "8: meters.runs.operations.small: must be >= 1"),
    "negative cost": ("small: 1", "small: -1", "8: meters.runs.operations.small: must be >= 1"),
    "cost as a boolean": ("small: 1", "small: true", "8: meters.runs.operations.small: must be a whole number"),
    "rate of nothing": ("requests: 10", "requests: 0", "28: plans.pro.rate_limit.requests: must be >= 1"),
    # money
    "price as a float": ("amount: 20,", "amount: 20.0,", f"24: plans.pro.prices.monthly.amount: {AMOUNT}"),
    "unit price as a float": ('unit_price: "0.50"', "unit_price: 0.50", f"26: {PRO}.unit_price: {AMOUNT}"),
    "price as a boolean": ("amount: 20,", "amount: true,", f"24: plans.pro.prices.monthly.amount: {AMOUNT}"),
    "negative price": ("amount: 20,", 'amount: "-20",', "24: plans.pro.prices.monthly.amount: must be >= 0"),
    "price with a currency": ("amount: 20,", 'amount: "$20",', "24: plans.pro.prices.monthly.amount: must be an am"),
    "price with an exponent": ("amount: 20,", 'amount: "2e1",', "24: plans.pro.prices.monthly.amount: must be an am"),
    "half a cent": ("amount: 20,", 'amount: "20.005",', "24: plans.pro.prices.monthly.amount: usd has 2 decimal"),
    "more than Stripe takes": ("amount: 20,", "amount: 1000000,", "24: plans.pro.prices.monthly.amount: must be <= 99"),
    "unit price of nothing": ('"0.50"', '"0.00"', f"26: {PRO}.unit_price: must be > 0"),
    "unit price of 15 places": ('"0.50"', '"0.000000000000001"', f"26: {PRO}.unit_price: a unit costs 0.0000000"),
    "unit price without an end": ('"0.50"}', '"0.50", per: 3}', f"26: {PRO}.per: 0.50 / 3 has infinitely many digits"),
    "unknown currency": ("currency: usd", "currency: usx", "2: currency: must be one of aed, "),
    "upper-case currency": ("currency: usd", "currency: USD", "2: currency: must be one of aed, "),
    # what happens beyond
    "missing beyond": ("        beyond: deny\n", "", f"14: {FREE}.beyond: missing: deny, grace, charge or allow"),
    "unknown beyond": ("beyond: deny\n", "beyond: stop\n", f"16: {FREE}.beyond: must be 'deny', 'grace', 'charge' or"),
    "unlimited with beyond": ("included: 5\n", "included: unlimited\n", f"16: {FREE}.beyond: unlimited has no beyond"),
    "charge without a price": (', unit_price: "0.50"', "", f"26: {PRO}.unit_price: missing: charge needs a price"),
    "price without charge": (
        "beyond: deny\n",
        'beyond: deny\n        unit_price: "1"\n',
        f"17: {FREE}.unit_price: only",
    ),
    "per without a price": ("beyond: deny\n", "beyond: deny\n        per: 10\n", f"17: {FREE}.per: needs a unit_price"),
    # what Stripe could not charge
    "charge beside a yearly price": ("interval: month}", "interval: year}", f"26: {PRO}.beyond: charge does not go wi"),
    "charge in calendar months": (
        "    rate_limit: {requests: 10",
        "    quota_period: calendar_month\n    rate_limit: {requests: 10",
        f"26: {PRO}.beyond: charge does not go with quota_period: calendar_month",
    ),
    "charge on the default plan": (
        "      runs:\n",
        '      seats: {included: 1, beyond: charge, unit_price: "1"}\n      runs:\n',
        "14: plans.free.limits.seats.beyond: charge needs a subscription, which the default plan has not",
    ),
    "pay-as-you-go beside a yearly price": (
        "    limits:\n      seats: {included: 1,",
        f"      yearly: {{amount: 80, interval: year, per_seat: true}}\n{MORE}    limits:\n      seats: {{included: 1,",
        "36: plans.team.pay_as_you_go.limits.runs.beyond: charge does not go with a yearly price",
    ),
    "a meter charged twice": (
        "    rate_limit: {requests: 10",
        f"{MORE}    rate_limit: {{requests: 10",
        "30: plans.pro.pay_as_you_go.limits.runs.beyond: the plan itself charges this meter already",
    ),
    "pay-as-you-go that may charge nothing": (
        "      name: On demand\n",
        "      name: On demand\n      overage_cap: 0\n",
        f"19: {OVERLAY}.overage_cap: must be > 0",
    ),
    "pay-as-you-go without a charge": (
        'beyond: charge, unit_price: "0.5"}',
        "beyond: allow}",
        f"19: {OVERLAY}.limits: needs a limit with beyond: charge",
    ),
    "default plan with a price": (
        "    name: Free\n",
        "    name: Free\n    prices: {monthly: {amount: 0, interval: month}}\n",
        "13: plans.free.prices: the default plan needs no subscription, so it cannot have prices",
    ),
    "default plan with a period of its own": (
        GOOD[GOOD.index("    pay_as_you_go:") : GOOD.index("  pro:")],
        "    quota_period: calendar_month\n",
        "17: plans.free.quota_period: the default plan's period is the catalog's free_period",
    ),
    "plan that nobody can buy": (
        "    prices:\n      monthly: {amount: 20, interval: month}\n",
        "",
        "21: plans.pro: needs prices (an amount of 0 is allowed), or sold: false",
    ),
    "seats without a price by the seat": (
        'monthly: {amount: "8.00", interval: month, per_seat: true}',
        'monthly: {amount: "8.00", interval: month}',
        "34: plans.team.limits.seats.per_seat: needs prices, all of them per_seat: true",
    ),
    "trial of what costs nothing": (
        "    name: Free\n",
        "    name: Free\n    trial_days: 7\n",
        "13: plans.free.trial_days: needs a price",
    ),
    "two things with one name at Stripe": (
        "      monthly: {amount: 20, interval: month}",
        "      runs: {amount: 20, interval: month}",
        "26: plans.pro.limits.runs: has the name shop_pro_runs at Stripe, as plans.pro.prices.runs does",
    ),
    "a name too long for Stripe": (
        "  pro:\n    name: Pro\n    prices:\n      monthly:",
        f"  {'p' * 64}:\n    name: Pro\n    prices:\n      {'m' * 64}:",
        f"24: plans.{'p' * 64}.prices.{'m' * 64}: shop_",
    ),
    # names
    "unknown meter": (
        "      seats: {included: 3",
        "      seat: {included: 3",
        "27: plans.pro.limits.seat: unknown meter",
    ),
    "unknown meter in an overlay": (
        "        runs: {included: 5",
        "        run: {included: 5",
        f"20: {OVERLAY}.limits.run",
    ),
    "unknown default plan": (
        "default_plan: free",
        "default_plan: fre",
        '3: default_plan: unknown plan "fre"; did you m',
    ),
    "missing default plan": ("default_plan: free\n", "", "1: default_plan: missing"),
    "plan named none": ("  team:", "  none:", "29: plans.none: none is reserved and means no plan"),
    "operation of two meters": (
        "  seats: {unit: seat, kind: gauge}",
        "  seats: {unit: seat, kind: consumable, operations: {large: 1}}",
        '9: meters.seats.operations.large: "large" is already an operation of runs',
    ),
    "gauge with operations": (
        "kind: gauge}",
        "kind: gauge, operations: {x: 1}}",
        "9: meters.seats.operations: a gauge",
    ),
    "name with a capital": ("  pro:", "  Pro:", "21: plans.Pro: must match ^[a-z][a-z0-9_]{0,63}$"),
    "name that begins with a digit": ("  pro:", "  2pro:", "21: plans.2pro: must match"),
    "name with a hyphen": (
        "monthly: {amount: 20",
        "per-month: {amount: 20",
        "24: plans.pro.prices.per-month: must match",
    ),
    "name of 65 characters": ("  pro:", f"  {'p' * 65}:", f"21: plans.{'p' * 65}: must match"),
    "number as a key": ("small: 1", "7: 1", '8: meters.runs.operations: "7" cannot be a key; quote it'),
    # keys
    "typo at the top": ("currency: usd", "curency: usd", "2: curency: unknown key; did you mean currency?"),
    "typo in a plan": (
        "    rate_limit:",
        "    rate_limits:",
        "28: plans.pro.rate_limits: unknown key; did you mean rate_",
    ),
    "typo in a limit": ("beyond: deny\n", "beyonds: deny\n", f"16: {FREE}.beyonds: unknown key; did you mean beyond?"),
    "typo in an overlay": ("      name: On", "      nam: On", f"18: {OVERLAY}.nam: unknown key; did you mean name?"),
    "typo in a price": (
        "interval: month}",
        "intervall: month}",
        "24: plans.pro.prices.monthly.intervall: unknown key; did",
    ),
    "alien key": ("currency: usd", "currency: usd\nzzz: 1", "3: zzz: unknown key"),
    "duplicate key": (
        "    rate_limit:",
        "    name: X\n    rate_limit:",
        "28: plans.pro.name: duplicate key, first on line 22",
    ),
    "duplicate plan": ("  team:", "  pro:", "29: plans.pro: duplicate key, first on line 21"),
    # the rest
    "falling alerts": ("[80, 100]", "[100, 80]", "5: alert_percents: must be in rising order, without duplicates"),
    "alert twice": ("[80, 100]", "[80, 80]", "5: alert_percents: must be in rising order, without duplicates"),
    "alert at nothing": ("[80, 100]", "[0, 100]", "5: alert_percents[0]: must be >= 1"),
    "alert far above": ("[80, 100]", "[80, 1001]", "5: alert_percents[1]: must be <= 1000"),
    "alert of a fraction": ("[80, 100]", "[80.5, 100]", "5: alert_percents[0]: must be a whole number"),
    "alerts in no list": ("[80, 100]", "80", "5: alert_percents: must be a list"),
    "grace without a unit": ("24h", "24", "6: grace_period: must be a duration such as 90s"),
    "grace of nothing": ("24h", "0h", "6: grace_period: must be a duration such as 90s"),
    "negative grace": ("24h", "-24h", "6: grace_period: must be a duration such as 90s"),
    "grace of years": ("24h", "400d", "6: grace_period: must be at most 366d"),
    "unknown kind": ("kind: gauge", "kind: level", "9: meters.seats.kind: must be 'consumable' or 'gauge'"),
    "unknown interval": (
        "interval: month}",
        "interval: week}",
        "24: plans.pro.prices.monthly.interval: must be 'month' or",
    ),
    "boolean as text": (
        "per_seat: true}\n    limits",
        'per_seat: "true"}\n    limits',
        "32: plans.team.prices.monthly.per_",
    ),
    "name of two lines": ("name: Pro", 'name: "Pro\\nMore"', "22: plans.pro.name: must be one line"),
    "empty name": ("name: Pro", 'name: " "', "22: plans.pro.name: must have at least 1 character"),
    "limits in a list": (
        "    limits:\n      seats:",
        "    limits:\n      - seats:",
        "33: plans.team.limits: must be a mapping",
    ),
    "a tag": ("name: Pro", "name: !!python/name:os.system Pro", "22: plans.pro.name: the tag "),
    "an own tag": ("name: Pro", "name: !secret Pro", '22: plans.pro.name: the tag "!secret" is refused'),
}


@pytest.mark.parametrize(("old", "new", "expected"), REFUSED.values(), ids=REFUSED.keys())
def test_a_bad_catalog_is_refused_with_line_and_path(old: str, new: str, expected: str, tmp_path: Path) -> None:
    assert GOOD.count(old) >= 1
    errors = errors_of(GOOD.replace(old, new, 1), tmp_path)
    assert any(line.startswith(f"x.yaml:{expected}") for line in errors), errors


def test_all_errors_are_told_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = GOOD.replace("default_plan: free", "default_plan: fre").replace("included: 5\n", "included: -1\n")
    text = text.replace("seats: {included: 3", "seat: {included: 3").replace("per: minute", "per: day")
    lines = errors_of(text, tmp_path)
    assert [line.split(": ")[0] for line in lines] == ["x.yaml:3", "x.yaml:15", "x.yaml:27", "x.yaml:28"]


def test_a_typo_is_one_line() -> None:
    with pytest.raises(loading.CatalogError) as caught:
        loading.load_text(GOOD.replace("    rate_limit:", "    rate_limits:"), "catalogs/x.yaml")
    assert caught.value.errors == ("catalogs/x.yaml:28: plans.pro.rate_limits: unknown key; did you mean rate_limit?",)


def test_a_unit_price_of_12_places_in_cents_is_the_finest(tmp_path: Path) -> None:
    finest = "0." + "0" * 13 + "1"
    catalog = loading.load_text(GOOD.replace('"0.50"', f'"{finest}"'), "x.yaml")
    limit = catalog.plan("pro").limits["runs"]
    assert f"{pricing_rules.overage(limit, 10**15):f}" == "10.00000000000000"
    assert errors_of(GOOD.replace('"0.50"', f'"{finest[:-1]}01"'), tmp_path)


def test_a_subscription_holds_19_metered_prices_the_overlay_among_them(tmp_path: Path) -> None:
    meters = "".join(f"  m{number}: {{unit: x, kind: consumable}}\n" for number in range(10))
    charged = "".join(f'        m{number}: {{included: 0, beyond: charge, unit_price: "1"}}\n' for number in range(10))
    text = GOOD.replace("meters:\n", f"meters:\n{meters}")
    before, after = text.split("    rate_limit: {requests: 10")
    overlay = f"    pay_as_you_go:\n      name: More\n      limits:\n{charged}    rate_limit: {{requests: 10{after}"
    # One of the plan itself and ten of its overlay are fine; nine more of the plan itself are one too many.
    assert len(loading.load_text(before + overlay, "x.yaml").plan("pro").metered_prices) == 11
    others = "".join(f'      n{number}: {{included: 0, beyond: charge, unit_price: "1"}}\n' for number in range(9))
    named = "".join(f"  n{number}: {{unit: x, kind: consumable}}\n" for number in range(9))
    text = (before + others + overlay).replace("meters:\n", f"meters:\n{named}")
    assert any("at most 19 meters can be charged" in line for line in errors_of(text, tmp_path))


def test_a_currency_without_minor_units_takes_whole_amounts(tmp_path: Path) -> None:
    yen = GOOD.replace("currency: usd", "currency: jpy").replace('"8.00"', "800").replace('"20"', "2000")
    catalog = loading.load_text(yen, "x.yaml")
    assert catalog.minor_units(catalog.plan("pro").prices["monthly"]) == 20
    assert errors_of(yen.replace("amount: 20,", 'amount: "20.5",'), tmp_path) == (
        "x.yaml:24: plans.pro.prices.monthly.amount: jpy has 0 decimal places",
    )


@pytest.mark.parametrize(("currency", "smallest"), [("isk", "1.00"), ("kwd", "0.010")])
def test_amounts_are_multiples_of_what_stripe_charges(currency: str, smallest: str, tmp_path: Path) -> None:
    good = GOOD.replace("currency: usd", f"currency: {currency}").replace('unit_price: "0.50"', "unit_price: 2")
    good = good.replace('unit_price: "0.5"', "unit_price: 3")
    assert loading.load_text(good, "x.yaml").currency == currency
    wrong = good.replace('"8.00"', '"8.005"' if currency == "kwd" else '"8.50"').replace(
        "unit_price: 2", 'unit_price: "0.001"'
    )
    message = f"must be a multiple of {smallest}, the smallest amount of {currency} that Stripe charges"
    assert errors_of(wrong, tmp_path) == (
        f"x.yaml:26: plans.pro.limits.runs.unit_price: {message}",
        f"x.yaml:32: plans.team.prices.monthly.amount: {message}",
    )


UNREADABLE = {
    "empty": (b"", "x.yaml:1: the top level must be a mapping"),
    "a list": (b"- a\n", "x.yaml:1: the top level must be a mapping"),
    "a scalar": (b"hello\n", "x.yaml:1: the top level must be a mapping"),
    "not UTF-8": (b"catalog: x\nname: \xff\n", "x.yaml:2: is not UTF-8"),
    "UTF-16": ("catalog: x\n".encode("utf-16"), "x.yaml:1: is not UTF-8"),
    "too large": (b"#" * (256 * 1024 + 1), "x.yaml: is larger than 256 KiB"),
    "broken syntax": (b"catalog: x\nmeters: {a: 1\n", "x.yaml:3: is not accepted as YAML: "),
    "a tab": (b"catalog: x\nmeters:\n\ta: 1\n", "x.yaml:3: is not accepted as YAML: "),
    "two documents": (b"a: 1\n---\nb: 2\n", "x.yaml:2: is not accepted as YAML: "),
    "a control character": (b"a: \x00\n", "x.yaml: is not YAML: "),
    "an anchor": (b"a: &x 1\n", "x.yaml:1: is not accepted as YAML: anchors and aliases are refused"),
    "an alias": (
        b"a: &x 1\nb: *x\n",
        "x.yaml:1: is not accepted as YAML: anchors and aliases are refused; repeat the text",
    ),
    "a bomb of aliases": (
        b"a: &a [x, x]\n" + b"".join(b"%c: &%c [*%c, *%c]\n" % (c, c, c - 1, c - 1) for c in range(98, 120)),
        "x.yaml:1: is not accepted as YAML: anchors and aliases are refused; repeat the text",
    ),
    "deep nesting": (b"a: " + b"[" * 50_000, "x.yaml:1: is not accepted as YAML: "),
}


@pytest.mark.parametrize(("content", "expected"), UNREADABLE.values(), ids=UNREADABLE.keys())
def test_what_is_no_catalog_at_all_is_told_in_one_line(content: bytes, expected: str, tmp_path: Path) -> None:
    (line,) = errors_of(content, tmp_path)
    assert line.startswith(expected)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(loading.CatalogError, match=r"nowhere.yaml: cannot be read: No such file"):
        loading.load_file(tmp_path / "nowhere.yaml")


def test_hostile_keys_stay_on_their_line_and_short(tmp_path: Path) -> None:
    (line,) = errors_of(GOOD + '"a\\nb\\e[31m' + "c" * 900 + '": 1\n', tmp_path)
    assert line.startswith('x.yaml:35: "a\\nb\\u001b[31mccc')
    assert len(line) < 150


def test_at_most_100_errors_of_a_catalog_are_told(tmp_path: Path) -> None:
    lines = errors_of(GOOD + "".join(f"zzz{number}: 1\n" for number in range(5000)), tmp_path)
    assert len(lines) == 101
    assert lines[-1] == "x.yaml: and 4900 more"


@given(
    st.integers(0, len(GOOD)),
    st.integers(0, 12),
    st.text(max_size=12) | st.sampled_from(["\\ud800", "!!", "&a *a", "? "]),
)
@settings(max_examples=60, deadline=None)
def test_no_text_brings_anything_but_a_catalog_or_a_catalog_error(at: int, dropped: int, put: str) -> None:
    lines = refusal_of(lambda: loading.load_text(GOOD[:at] + put + GOOD[at + dropped :], "x.yaml"))
    assert all(line.startswith("x.yaml") and line.isprintable() for line in lines)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
PLACES = [["meters"], ["plans"], ["plans", "pro"], ["plans", "pro", "limits", "runs"], ["meters", "runs", "operations"]]


@given(st.sampled_from(PLACES), st.sampled_from(["included", "name", "prices", "runs", "kind", "x"]), JSON)
@settings(max_examples=60, deadline=None)
def test_no_document_brings_anything_but_a_catalog_or_a_catalog_error(
    place: list[str], key: str, value: object
) -> None:
    document = loading.load_text(GOOD, "x.yaml").model_dump(mode="json", by_alias=True)
    holder = document
    for step in place:
        holder = holder[step]
    holder[key] = value
    assert all(line.isprintable() for line in refusal_of(lambda: loading.load_document(document)))


def test_a_stored_document_is_held_to_the_same_rules() -> None:
    document = loading.load_text(GOOD, "x.yaml").model_dump(mode="json", by_alias=True)
    assert loading.load_document(document) == loading.load_text(GOOD, "x.yaml")
    document["plans"]["pro"]["limits"]["runs"]["unit_price"] = 0.5
    with pytest.raises(loading.CatalogError) as caught:
        loading.load_document(json.loads(json.dumps(document)), "version 3")
    (line,) = caught.value.errors
    assert line.startswith("version 3: plans.pro.limits.runs.unit_price: must be a whole number or, for an amount")
