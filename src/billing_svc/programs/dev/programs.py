"""The programs of the parts, their environment, and the checks that they answer."""

import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Never

import httpx

from billing_svc.api import probe
from billing_svc.platform import settings
from billing_svc.programs.dev import options
from billing_svc.programs.dev.options import LOOPBACK, Ports
from billing_svc.programs.dev.parts import Program
from billing_svc.programs.supervision import children

# The front end on the developer's machine, to which the sandbox's pages send the customer back.
_FRONT_END = "http://localhost:3000"
_WEBHOOK_PATH = "/stripe/webhook"
# The time limit of a single check; checks are repeated until the part answers.
_PROBE_SECONDS_MAX = 2.0
# Variables of the service are not inherited, so that `dev` behaves the same on every machine.
_OWN_PREFIXES = ("BILLING_", "DATABASE_URL", "GATEWAY_", "STRIPE_")
_KEPT = frozenset({"BILLING_LOG_LEVEL", "BILLING_TRANSPORT"})

_SANDBOX = (sys.executable, "-m", "stripe_sandbox")


def environment(ports: Ports, database_url: str, path: Path, stripe: options.StripeAccount | None) -> Mapping[str, str]:
    """Return the environment of every part; `path` is the data folder."""
    inherited = {
        name: value for name, value in os.environ.items() if name in _KEPT or not name.startswith(_OWN_PREFIXES)
    }
    own_hosts = ",".join(
        filter(None, (os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), LOOPBACK, "localhost"))
    )
    return inherited | {
        "PYTHONUNBUFFERED": "1",
        # Calls on this machine must not go through a proxy of the environment.
        "no_proxy": own_hosts,
        "NO_PROXY": own_hosts,
        "BILLING_DEV": "1",
        "BILLING_LISTEN": grpc_address(ports),
        "BILLING_REFLECTION": "1",
        # A stop waits until the clients' connections have reached this age.
        "BILLING_CONNECTION_AGE_SECONDS": "1",
        "BILLING_CHECKOUT_SUCCESS_URL": f"{_FRONT_END}/billing/success",
        "BILLING_CHECKOUT_CANCEL_URL": f"{_FRONT_END}/billing/cancel",
        "DATABASE_URL": database_url,
        **(_with_sandbox(ports, path) if stripe is None else _with_stripe(stripe)),
        "BILLING_GRPC_TARGET": grpc_address(ports),
        "BILLING_GRPC_TOKEN": settings.DEV_TOKEN,
        "GATEWAY_LISTEN": f"{LOOPBACK}:{ports.gateway}",
    }


def _with_sandbox(ports: Ports, path: Path) -> Mapping[str, str]:
    return {
        "BILLING_REDIRECT_ORIGINS": f"{_FRONT_END},{sandbox_url(ports)}",
        "BILLING_CLOCK_FILE": str(_clock_file(path)),
        "STRIPE_API_KEY": options.SANDBOX_KEY,
        "STRIPE_API_BASE": sandbox_url(ports),
        "STRIPE_SANDBOX_WEBHOOK_SECRET": settings.DEV_WEBHOOK_SECRET,
        "STRIPE_WEBHOOK_SECRETS": settings.DEV_WEBHOOK_SECRET,
    }


def _with_stripe(stripe: options.StripeAccount) -> Mapping[str, str]:
    return {
        "BILLING_REDIRECT_ORIGINS": _FRONT_END,
        "STRIPE_API_KEY": stripe.api_key,
        "STRIPE_WEBHOOK_SECRETS": stripe.webhook_secret,
    }


def _clock_file(path: Path) -> Path:
    return path / "clock"


def own(environment: Mapping[str, str], stripe: options.StripeAccount | None) -> Mapping[str, str]:
    """Return the variables of a command that works beside a running `dev`; without STRIPE_* for Stripe itself."""
    own = {name: value for name, value in environment.items() if name.startswith(_OWN_PREFIXES)}
    return own if stripe is None else {name: own[name] for name in own if not name.startswith("STRIPE_")}


def grpc_address(ports: Ports) -> str:
    """Return the server's address."""
    return f"{LOOPBACK}:{ports.grpc}"


def webhook_url(ports: Ports) -> str:
    """Return the gateway's URL for Stripe's events."""
    return f"http://{LOOPBACK}:{ports.gateway}{_WEBHOOK_PATH}"


def sandbox_url(ports: Ports) -> str:
    """Return the sandbox's URL, for Stripe's API and for the pages."""
    return f"http://{LOOPBACK}:{ports.sandbox}"


def command(*arguments: str) -> tuple[str, ...]:
    """Return the command line of a `billing-svc` command; PATH does not matter."""
    return (sys.executable, "-m", "billing_svc", *arguments)


def sandbox_state(path: Path) -> Path:
    """Return the sandbox's database file."""
    return path / "sandbox.sqlite"


def sandbox(ports: Ports, path: Path, common: Mapping[str, str]) -> Program:
    """Return the sandbox, the stand-in for Stripe."""
    arguments = (
        *("--port", str(ports.sandbox), "--state", str(sandbox_state(path))),
        *("--webhook-url", webhook_url(ports), "--clock-file", str(_clock_file(path))),
    )
    health = f"{sandbox_url(ports)}/healthz"
    return Program("sandbox", (*_SANDBOX, *arguments), common, _answers_http(health))


def become_sandbox_advance(duration: str, port: int, pause_seconds: float | None) -> Never:
    """Replace this process by the sandbox's own command."""
    pause = () if pause_seconds is None else ("--pause", str(pause_seconds))
    options.require_extra()
    arguments = (*_SANDBOX, "advance", duration, "--port", str(port), *pause)
    os.execv(sys.executable, arguments)  # noqa: S606 - no shell is the point


def server(ports: Ports, common: Mapping[str, str]) -> Program:
    """Return the gRPC server."""

    async def answers(_child: children.Child) -> bool:
        return await probe.is_serving(grpc_address(ports), _PROBE_SECONDS_MAX)

    return Program("server", command("serve"), common, answers)


def worker(common: Mapping[str, str]) -> Program:
    """Return the worker. It listens on no port; a log line announces that its loops run."""

    async def answers(child: children.Child) -> bool:
        return child.has_announced

    return Program("worker", command("worker"), common, answers, announcement="working")


def gateway(ports: Ports, common: Mapping[str, str]) -> Program:
    """Return the webhook gateway, which is ready when the server is."""
    ready = f"http://{LOOPBACK}:{ports.gateway}/readyz"
    return Program("gateway", (sys.executable, "-m", "webhook_gateway"), common, _answers_http(ready))


def _answers_http(url: str) -> Callable[[children.Child], Awaitable[bool]]:
    async def answers(_child: children.Child) -> bool:
        async with httpx.AsyncClient(trust_env=False, timeout=_PROBE_SECONDS_MAX) as client:
            try:
                return (await client.get(url)).is_success
            except httpx.HTTPError:
                return False

    return answers
