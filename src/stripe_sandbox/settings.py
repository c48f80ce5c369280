"""What a sandbox is told when it starts."""

import dataclasses
import pathlib
import urllib.parse

from stripe_sandbox.control import faults

LOOPBACK = "127.0.0.1"
"""Where it listens, and what its pages' addresses begin with: pages and control routes have no authentication."""

OWN_NAMES = (LOOPBACK, "localhost", "sandbox")
"""What it may be called in a request. The last is its name beside others in containers; no site can have it."""


PORT = 12111
"""Where it listens unless it is told otherwise."""


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """Without a webhook URL events are kept for listing, and none is sent.

    The clock file tells other programs how far the clock was moved; the faults are in force from the start.
    """

    port: int
    state_file: pathlib.Path
    webhook_url: str | None = None
    webhook_secret: str | None = None
    clock_file: pathlib.Path | None = None
    faults_at_start: tuple[faults.Rule, ...] = ()

    def __post_init__(self) -> None:
        if self.webhook_url and not self.webhook_secret:
            raise ValueError("a webhook URL needs a webhook secret to sign with")
        if self.webhook_url and not urllib.parse.urlsplit(self.webhook_url).netloc:
            raise ValueError(f"not a URL: {self.webhook_url}")

    @property
    def public_url(self) -> str:
        """Where a browser finds the pages."""
        return f"http://{LOOPBACK}:{self.port}"
