"""What `billing-svc dev` is told, by its options and by the environment."""

import importlib.util
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from billing_svc import cli
from billing_svc.catalog import loading, model

LOOPBACK = "127.0.0.1"
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
class Options:
    """All that `dev` is told. `database_url` is None for the embedded Postgres; `meter` is one of the catalog's."""

    catalog_file: Path
    meter: str
    data_dir: Path
    reset: bool
    requested: Ports
    database_url: str | None


def read(*, catalog: Path, data_dir: Path, reset: bool, requested: Ports) -> Options:
    """Return the options, once all that needs no port and no folder was checked. Raises Refusal or CatalogError."""
    if os.environ.get("STRIPE_API_KEY", "").startswith(("sk_live_", "rk_live_")):
        raise cli.Refusal(
            "STRIPE_API_KEY is a live key, which moves real money: `dev` does not start beside one; unset it"
        )
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise cli.Refusal(f"{missing[0]} is not installed: `dev` needs the extra (pip install 'billing-svc[dev]')")
    return Options(
        catalog_file=catalog.resolve(),
        meter=_first_meter(loading.load_file(catalog)),
        data_dir=data_dir,
        reset=reset,
        requested=requested,
        database_url=os.environ.get("DATABASE_URL") or None,
    )


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
        raise cli.Refusal(f"port {port} is wanted twice; give {option} another one")
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
            raise cli.Refusal(f"port {port} is not for ordinary users; choose another one with {option}") from None
        except OSError:
            held.pop().close()
            if time.monotonic() > deadline:
                raise cli.Refusal(
                    f"port {port} is in use; choose another one with {option} (0 picks a free one)"
                ) from None
            time.sleep(_POLL_SECONDS)
        else:
            chosen: int = probe.getsockname()[1]
            return chosen
