"""The summary that `billing-svc catalog check` shows of a valid catalog, and the JSON Schema for editors."""

import json
from dataclasses import dataclass

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from billing_svc.catalog import model, parts


@dataclass(frozen=True, slots=True)
class SummaryRow:
    """The terms of a plan (or its overlay) for a meter, each cell as text. Each row repeats the plan's own cells."""

    plan: str
    prices: str
    rate_limit: str
    meter: str
    included: str
    beyond: str


def summary_rows(catalog: model.Catalog) -> list[SummaryRow]:
    """Return a row for each plan and meter, then for each meter of its pay-as-you-go, in the catalog's order."""
    rows = []
    for key, plan in catalog.plans.items():
        shown = f"{key} (default)" if key == catalog.default_plan else key if plan.sold else f"{key} (not sold)"
        prices = ", ".join(_price(one, catalog.currency) for one in plan.prices.values()) or "-"
        rate = _rate(plan.rate_limit)
        rows += [_row(shown, prices, rate, meter, limit, catalog.currency) for meter, limit in plan.limits.items()]
        if not plan.limits:
            rows.append(SummaryRow(shown, prices, rate, meter="-", included="-", beyond="-"))
        if plan.pay_as_you_go is not None:
            rate = _rate(plan.rate_limit_for(pay_as_you_go=True))
            rows += [
                _row(f"{key} + pay as you go", "-", rate, meter, limit, catalog.currency)
                for meter, limit in plan.pay_as_you_go.limits.items()
            ]
    return rows


def _row(plan: str, prices: str, rate: str, meter: str, limit: parts.Limit, currency: str) -> SummaryRow:
    included = limit.included if limit.included == "unlimited" else f"{limit.included:,}"
    beyond: str = limit.beyond or "-"
    if limit.unit_price is not None:
        block = "" if limit.per == 1 else f" per {limit.per:,}"
        beyond = f"{beyond} {limit.unit_price:f} {currency}{block}"
    return SummaryRow(plan, prices, rate, meter, f"{included}{' per seat' if limit.per_seat else ''}", beyond)


def _price(price: parts.Price, currency: str) -> str:
    return f"{price.amount:f} {currency}/{price.interval}{' per seat' if price.per_seat else ''}"


def _rate(rate: parts.RateLimit | None) -> str:
    return "-" if rate is None else f"{rate.requests:,}/{rate.per}"


class _EditorSchema(GenerateJsonSchema):
    def dict_schema(self, schema: core_schema.DictSchema) -> JsonSchemaValue:
        """Refuse names that do not match the pattern; JSON Schema allows them by default."""
        return {**super().dict_schema(schema), "additionalProperties": False}


def json_schema_text() -> str:
    """Return the JSON Schema of a catalog file; `catalogs/catalog.schema.json` has this text."""
    schema = model.Catalog.model_json_schema(by_alias=True, schema_generator=_EditorSchema)
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
    return json.dumps(schema, indent=2) + "\n"
