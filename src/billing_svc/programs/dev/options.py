"""What `billing-svc dev` is told, by its options and by the environment."""

import importlib.util
import os
import socket
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from billing_svc.catalog import loading, model
from billing_svc.programs.commands import common

LOOPBACK = "127.0.0.1"
# Where the sandbox's own command looks for it.
SANDBOX_PORT = 12_111
# The key by which the parts call the sandbox; it takes any test key.
SANDBOX_KEY = "sk_test_sandbox"
# A part of a `dev` that was killed a moment ago may not have let go yet.
_PREDECESSOR_SECONDS_MAX = 2.0
_POLL_SECONDS = 0.05
# What gateway and sandbox import and `billing-svc[server]` lacks.
_NEEDED = ("starlette", "uvicorn")


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the parts listen, on 127.0.0.1; 0 is a free one, to be picked."""

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
    """All that `dev` is told. `meter` is one of the catalog's.

    `database_url` is None for the embedded Postgres, `stripe` for the sandbox.
    """

    catalog_file: Path
    meter: str
    data_dir: Path
    reset: bool
    requested: Ports
    database_url: str | None
    stripe: StripeAccount | None


def read(*, catalog: Path, data_dir: Path, reset: bool, requested: Ports) -> Options:
    """Return the options, once all that needs no port and no folder was checked. Raises Refusal or CatalogError."""
    if os.environ.get("STRIPE_API_KEY", "").startswith(("sk_live_", "rk_live_")):
        raise common.Refusal(
            "STRIPE_API_KEY is a live key, which moves real money: `dev` does not start beside one; unset it"
        )
    require_extra()
    stripe = _stripe_account()
    return Options(
        catalog_file=catalog.resolve(),
        meter=_first_meter(loading.load_file(catalog)),
        data_dir=data_dir,
        reset=reset,
        # Without a sandbox nobody needs its port.
        requested=requested if stripe is None else replace(requested, sandbox=0),
        database_url=os.environ.get("DATABASE_URL") or None,
        stripe=stripe,
    )


def require_extra() -> None:
    """Raise Refusal if the packages are missing that only development needs."""
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
    """Return the ports, the free ones picked. Raises Refusal that names the one that is in use and its option."""
    held: list[socket.socket] = []
    try:
        # All are held until the last one is chosen, so that none is picked twice.
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
        raise common.Refusal(f"port {port} is wanted twice; give {option} another one")
    deadline = time.monotonic() + _PREDECESSOR_SECONDS_MAX
    while True:
        probe = socket.socket()
        held.append(probe)
        # Connections that ended lately do not count, as they will not for the part itself.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
            probe.listen()
        except PermissionError:
            raise common.Refusal(f"port {port} is not for ordinary users; choose another one with {option}") from None
        except OSError:
            held.pop().close()
            if time.monotonic() > deadline:
                raise common.Refusal(
                    f"port {port} is in use; choose another one with {option} (0 picks a free one)"
                ) from None
            time.sleep(_POLL_SECONDS)
        else:
            chosen: int = probe.getsockname()[1]
            return chosen
