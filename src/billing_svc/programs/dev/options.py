"""The options of `billing-svc dev`, from the command line and from the environment."""

import importlib.util
import os
import socket
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from billing_svc.catalog import loading, model
from billing_svc.programs.commands import common

LOOPBACK = "127.0.0.1"
# The default port of the sandbox's own command.
SANDBOX_PORT = 12_111
# The key with which the parts call the sandbox; the sandbox accepts any test key.
SANDBOX_KEY = "sk_test_sandbox"
# A part of a `dev` that was just killed may still hold its port for a moment.
_PREDECESSOR_SECONDS_MAX = 2.0
_POLL_SECONDS = 0.05
# Packages that the gateway and the sandbox import, and that `billing-svc[server]` does not install.
_NEEDED = ("starlette", "uvicorn")


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports of the parts on 127.0.0.1; 0 means that a free port is picked."""

    grpc: int
    gateway: int
    sandbox: int


@dataclass(frozen=True, slots=True)
class StripeAccount:
    """A test account at Stripe itself."""

    api_key: str = field(repr=False)
    webhook_secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Options:
    """All options of `dev`. `meter` is a meter of the catalog.

    `database_url` is None for the embedded Postgres, `stripe` is None for the sandbox.
    """

    catalog_file: Path
    meter: str
    data_dir: Path
    reset: bool
    requested: Ports
    database_url: str | None
    stripe: StripeAccount | None


def read(*, catalog: Path, data_dir: Path, reset: bool, requested: Ports) -> Options:
    """Return the options, after all checks that need no port and no folder. Raises Refusal or CatalogError."""
    if os.environ.get("STRIPE_API_KEY", "").startswith(("sk_live_", "rk_live_")):
        raise common.Refusal(
            "STRIPE_API_KEY is a live key, which moves real money: `dev` does not start with a live key; unset it"
        )
    require_extra()
    stripe = _stripe_account()
    return Options(
        catalog_file=catalog.resolve(),
        meter=_first_meter(loading.load_file(catalog)),
        data_dir=data_dir,
        reset=reset,
        # Without the sandbox its port is not needed.
        requested=requested if stripe is None else replace(requested, sandbox=0),
        database_url=os.environ.get("DATABASE_URL") or None,
        stripe=stripe,
    )


def require_extra() -> None:
    """Raise Refusal if packages are missing that only development needs."""
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise common.Refusal(f"{missing[0]} is not installed: `dev` needs the extra (pip install 'billing-svc[dev]')")


def _stripe_account() -> StripeAccount | None:
    key = os.environ.get("STRIPE_API_KEY", "")
    if not key.startswith(("sk_test_", "rk_test_")) or key == SANDBOX_KEY:
        return None
    secret = os.environ.get("STRIPE_WEBHOOK_SECRET", "")
    if not secret:
        raise common.Refusal(
            "STRIPE_API_KEY is a test key of Stripe's, so `dev` would use Stripe itself: set STRIPE_WEBHOOK_SECRET too "
            "(`stripe listen` prints it), or unset STRIPE_API_KEY to use the sandbox"
        )
    return StripeAccount(key, secret)


def _first_meter(catalog: model.Catalog) -> str:
    return next(iter(catalog.meters))


def choose_ports(requested: Ports) -> Ports:
    """Return the ports, with a free port for each 0. Raises a Refusal that names a port in use and its option."""
    held: list[socket.socket] = []
    try:
        # All sockets are kept open until the last port is chosen, so that no port is picked twice.
        return Ports(
            grpc=_hold(requested.grpc, "--grpc-port", held),
            gateway=_hold(requested.gateway, "--gateway-port", held),
            sandbox=_hold(requested.sandbox, "--sandbox-port", held),
        )
    finally:
        for one in held:
            one.close()


def _hold(port: int, option: str, held: list[socket.socket]) -> int:
    if port and any(port == one.getsockname()[1] for one in held):
        raise common.Refusal(f"port {port} is requested twice; give {option} another port")
    deadline = time.monotonic() + _PREDECESSOR_SECONDS_MAX
    while True:
        probe = socket.socket()
        held.append(probe)
        # With SO_REUSEADDR, connections that ended lately do not matter; the part itself sets it too.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
            probe.listen()
        except PermissionError:
            raise common.Refusal(f"port {port} is reserved for root; choose another port with {option}") from None
        except OSError:
            held.pop().close()
            if time.monotonic() > deadline:
                raise common.Refusal(
                    f"port {port} is in use; choose another port with {option} (0 picks a free port)"
                ) from None
            time.sleep(_POLL_SECONDS)
        else:
            chosen: int = probe.getsockname()[1]
            return chosen
