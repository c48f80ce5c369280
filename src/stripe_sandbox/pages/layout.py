"""The parts that all pages share: layout, form fields, and the notation of amounts."""

import decimal
import html

from starlette.requests import Request
from starlette.responses import HTMLResponse

from stripe_sandbox import errors
from stripe_sandbox.api import forms

STYLE = """
:root { color-scheme: light dark; --page: #f4f5f7; --sheet: #fff; --text: #1d2330; --soft: #5b6270; --line: #e5e7eb;
        --link: #4338ca; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14161b; --sheet: #1f232b; --text: #e7e9ee; --soft: #a2a9b8; --line: #363c48; --link: #a5b4fc; }
}
body { font: 16px/1.5 system-ui, sans-serif; background: var(--page); color: var(--text); margin: 0; }
main { max-width: 30rem; margin: 8vh auto; padding: 2rem; background: var(--sheet); border-radius: 12px;
       box-shadow: 0 1px 4px rgb(0 0 0 / 15%); }
main.wide { max-width: 72rem; margin: 2rem auto; overflow-x: auto; }
.wide td { overflow-wrap: anywhere; padding-right: 1rem; } .wide td:first-child { white-space: nowrap; }
a { color: var(--link); }
h1 { font-size: 1.3rem; margin: 0 0 1rem; } h2 { font-size: 1.05rem; margin: 1.5rem 0 .5rem; }
table { width: 100%; border-collapse: collapse; }
td { padding: .6rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td:last-child { text-align: right; white-space: nowrap; padding-left: 1rem; }
small { color: var(--soft); display: block; }
form { margin: .75rem 0 0; } button + button { margin-top: .5rem; }
button { width: 100%; padding: .75rem; font: inherit; border: 0; border-radius: 8px; cursor: pointer; }
.pay { background: #4f46e5; color: #fff; } .cancel { background: var(--line); color: var(--text); }
.note { color: var(--soft); font-size: .85rem; margin: 1.5rem 0 0; }
@media (max-width: 60rem) {
  main { padding: 1.25rem; }
  .wide tr { display: block; padding: .5rem 0; border-bottom: 1px solid var(--line); }
  .wide td, .wide td:first-child, .wide td:last-child { display: block; padding: 0; border: 0; text-align: left;
    white-space: normal; }
  .wide td + td { color: var(--soft); }
}
"""

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
}

MINOR_DIGITS = dict.fromkeys(
    ("bif", "clp", "djf", "gnf", "jpy", "kmf", "krw", "mga", "pyg", "rwf", "vnd", "vuv", "xaf", "xof", "xpf"), 0
) | dict.fromkeys(("bhd", "jod", "kwd", "omr", "tnd"), 3)
"""Currencies with another number of decimal places than two."""

FORM_BYTES_MAX = 4096
"""Far larger than any form of the pages."""


async def fields(request: Request) -> dict[str, str]:
    """Return the fields of a page's form; none if the body is too large or cannot be decoded."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > FORM_BYTES_MAX:
            return {}
    try:
        return {name: value for name, value in forms.decode(bytes(body)).items() if isinstance(value, str)}
    except errors.InvalidParameter:
        return {}


def page(body: str, title: str = "Sandbox checkout", status: int = 200, *, wide: bool = False) -> HTMLResponse:
    """Return the response with a page; `body` is HTML."""
    kind = ' class="wide"' if wide else ""
    return HTMLResponse(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body><main{kind}>{body}"
        '<p class="note">A sandbox on this machine: no money moves.</p></main></body></html>',
        status_code=status,
        headers=HEADERS,
    )


def money(minor: decimal.Decimal | int, currency: str) -> str:
    """Return an amount of minor units in major units, with at least the currency's decimal places."""
    digits = MINOR_DIGITS.get(currency, 2)
    major = decimal.Decimal(minor).scaleb(-digits)
    exponent = major.normalize().as_tuple().exponent
    places = max(digits, -exponent if isinstance(exponent, int) else 0)
    return f"{major:,.{places}f} {currency.upper()}"
