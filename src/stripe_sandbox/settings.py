"""The settings with which a sandbox starts."""

import dataclasses
import pathlib
import urllib.parse

from stripe_sandbox.control import faults

LOOPBACK = "127.0.0.1"
"""The default address, and the host of the pages' URLs. Only this machine reaches it: pages have no authentication."""

OWN_NAMES = (LOOPBACK, "localhost", "sandbox")
"""Allowed names in a request's Host. `sandbox` is the name among containers; no site can have such a domain."""


PORT = 12111
"""The default port."""


@dataclasses.dataclass(frozen=True, slots=True)
class Delays:
    """How many seconds Stripe takes for what it does by itself. A control route changes the values while it runs.

    A draft becomes final; usage that a meter has accepted is counted; a write is found by a search.
    """

    drafts: int = 3600
    meters: int = 0
    search: int = 60


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """The settings; without a webhook URL, events are stored and can be listed, but are not sent.

    The clock file tells other programs how far the clock was moved. The faults are in force from the start.
    """

    port: int
    state_file: pathlib.Path
    webhook_url: str | None = None
    webhook_secret: str | None = None
    clock_file: pathlib.Path | None = None
    faults_at_start: tuple[faults.Rule, ...] = ()
    delays: Delays = dataclasses.field(default_factory=Delays)

    def __post_init__(self) -> None:
        if self.webhook_url and not self.webhook_secret:
            raise ValueError("a webhook URL needs a webhook secret to sign with")
        if self.webhook_url and not urllib.parse.urlsplit(self.webhook_url).netloc:
            raise ValueError(f"not a URL: {self.webhook_url}")

    @property
    def public_url(self) -> str:
        """The beginning of the pages' URLs."""
        return f"http://{LOOPBACK}:{self.port}"
