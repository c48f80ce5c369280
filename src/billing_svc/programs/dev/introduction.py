"""The lines that `dev` prints when every part answers: addresses, and a first call to copy."""

import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from billing_svc.platform import settings
from billing_svc.programs.dev import folder, options, programs

_ACCOUNT = "acme"

# For a shell in another terminal. {python} is a Python that has the stubs installed.
_CALL = """\
{python} - <<'END'
import grpc
from billing.v1 import quota_pb2, quota_pb2_grpc

channel = grpc.insecure_channel("{address}")
request = quota_pb2.CheckQuotaRequest(account_id="{account}", meter="{meter}", quantity=1)
token = (("authorization", "Bearer {token}"),)
print(quota_pb2_grpc.QuotaServiceStub(channel).CheckQuota(request, timeout=5, metadata=token))
END"""
_GRPCURL = """\
grpcurl -plaintext -H 'authorization: Bearer {token}' -d '{{"account_id": "{account}", "meter": "{meter}"}}' \
{address} billing.v1.QuotaService/CheckQuota"""


def lines(chosen: options.Options, ports: options.Ports, path: Path) -> Iterator[str]:
    """Yield the lines, in plain text."""
    values = {
        "python": shlex.quote(_shown(sys.executable)),
        "address": programs.grpc_address(ports),
        "token": settings.DEV_TOKEN,
        "account": _ACCOUNT,
        "meter": chosen.meter,
    }
    yield ""
    yield f"  gRPC      {programs.grpc_address(ports)}  (token {settings.DEV_TOKEN})"
    yield f"  webhook   {programs.webhook_url(ports)}"
    if chosen.stripe is None:
        yield f"  sandbox   {programs.sandbox_url(ports)}  (in Stripe's place)"
        yield f"  clock     {_program()} sandbox advance 35d{_port_option(ports)}  (moves Stripe's and ours)"
    else:
        yield "  Stripe    itself, in test mode; its events come by"
        yield f"            stripe listen --forward-to {programs.webhook_url(ports)}"
    yield f"  database  {'as DATABASE_URL says' if chosen.database_url else _shown(str(path / 'postgres'))}"
    yield f"  catalog   {_shown(str(chosen.catalog_file))}"
    yield f"  commands  . {_shown(str(path / folder.ENVIRONMENT))} && {_program()} doctor"
    yield ""
    yield "A first call, to copy into another terminal:"
    yield ""
    yield from _CALL.format_map(values).splitlines()
    yield ""
    yield "The same with grpcurl, where that is installed:"
    yield ""
    yield _GRPCURL.format_map(values)
    yield ""


def _program() -> str:
    """Return the path of our own command, relative to the current folder; PATH does not matter."""
    return shlex.quote(_shown(str(Path(sys.executable).with_name("billing-svc"))))


def _port_option(ports: options.Ports) -> str:
    return "" if ports.sandbox == options.SANDBOX_PORT else f" --sandbox-port {ports.sandbox}"


def _shown(path: str) -> str:
    """Return a path relative to the current folder if it lies below it, else unchanged."""
    relative = os.path.relpath(path)
    return path if relative.startswith(os.pardir) else relative
