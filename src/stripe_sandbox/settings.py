"""What a sandbox is told when it starts."""

import dataclasses
import pathlib
import urllib.parse

LOOPBACK = "127.0.0.1"
"""The one address it listens on: its pages and its control routes have no authentication."""


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """Without a webhook URL events are kept for listing, and none is sent."""

    port: int
    state_file: pathlib.Path
    webhook_url: str | None = None
    webhook_secret: str | None = None

    def __post_init__(self) -> None:
        if self.webhook_url and not self.webhook_secret:
            raise ValueError("a webhook URL needs a webhook secret to sign with")
        if self.webhook_url and not urllib.parse.urlsplit(self.webhook_url).netloc:
            raise ValueError(f"not a URL: {self.webhook_url}")

    @property
    def public_url(self) -> str:
        """Where a browser finds the pages."""
        return f"http://{LOOPBACK}:{self.port}"
