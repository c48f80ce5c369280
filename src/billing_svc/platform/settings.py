"""Every setting, read once from the environment into a typed object; `docs/settings.md` lists them."""

import ipaddress
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

# The token and the secret of `dev`. Both are public, so they are refused everywhere else.
DEV_TOKEN = "dev-token"  # noqa: S105 - public on purpose
DEV_WEBHOOK_SECRET = "whsec_dev"  # noqa: S105 - public on purpose

PORT_MAX = 65_535

T = TypeVar("T", bound="DatabaseSettings")


class SettingsError(Exception):
    """A setting is missing or wrong; the message has a sentence for each such setting."""


class DatabaseSettings(BaseSettings):
    """The settings of commands that never call Stripe, so that they can run without Stripe's key."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", populate_by_name=True, env_ignore_empty=True)

    database_url: Annotated[SecretStr, Field(alias="DATABASE_URL")]
    dev: Annotated[bool, Field(alias="BILLING_DEV")] = False
    log_level: Annotated[str, Field(alias="BILLING_LOG_LEVEL", pattern="^(debug|info|warning|error)$")] = "info"
    # The file with the offset of the sandbox's clock. `dev` sets it, so that the service's clock has the same offset.
    clock_file: Annotated[Path | None, Field(alias="BILLING_CLOCK_FILE")] = None

    @model_validator(mode="after")
    def _check_clock(self) -> "DatabaseSettings":
        if self.clock_file is not None and not self.dev:
            raise ValueError("BILLING_CLOCK_FILE moves the clock, which only `billing-svc dev` may; unset it")
        return self


class Settings(DatabaseSettings):
    """The settings of the programs that may call Stripe: `serve`, `worker` and some commands."""

    listen: Annotated[str, Field(alias="BILLING_LISTEN")] = "127.0.0.1:50051"
    # `fast` is on gRPC's private interface, `aio` on its public one: slower, and of any release.
    transport: Annotated[Literal["fast", "aio"], Field(alias="BILLING_TRANSPORT")] = "fast"
    reflection: Annotated[bool, Field(alias="BILLING_REFLECTION")] = False
    callers_file: Annotated[Path | None, Field(alias="BILLING_CALLERS_FILE")] = None
    tls_cert_file: Annotated[Path | None, Field(alias="BILLING_TLS_CERT_FILE")] = None
    tls_key_file: Annotated[Path | None, Field(alias="BILLING_TLS_KEY_FILE")] = None
    # If set, clients without a certificate of these authorities cannot connect.
    tls_client_ca_file: Annotated[Path | None, Field(alias="BILLING_TLS_CLIENT_CA_FILE")] = None
    allow_plaintext: Annotated[bool, Field(alias="BILLING_ALLOW_PLAINTEXT")] = False
    # Connections are closed at this age. A client that connects again can reach added servers, and the server then
    # uses renewed certificates and the current list of authorities.
    connection_age_seconds: Annotated[int, Field(alias="BILLING_CONNECTION_AGE_SECONDS", ge=1, le=86_400)] = 15
    # The host:port that answers metrics and probes; None turns both off.
    monitoring_listen: Annotated[str | None, Field(alias="BILLING_MONITORING_LISTEN")] = None
    database_pool_size: Annotated[int, Field(alias="BILLING_DATABASE_POOL_SIZE", ge=1, le=200)] = 10

    stripe_api_key: Annotated[SecretStr, Field(alias="STRIPE_API_KEY")]
    # How long the body of a Stripe event is kept after the event was applied or ignored; at least Stripe's 30 days.
    event_body_days: Annotated[int, Field(alias="BILLING_EVENT_BODY_DAYS", ge=30, le=3650)] = 90
    # How often billable usage is sealed, and how often it is sent. Default: 1 and 5 minutes; in `dev`, 1 second.
    usage_seal_seconds: Annotated[float | None, Field(alias="BILLING_USAGE_SEAL_SECONDS", ge=1, le=3600)] = None
    usage_send_seconds: Annotated[float | None, Field(alias="BILLING_USAGE_SEND_SECONDS", ge=1, le=3600)] = None
    # The calls of all workers together. Stripe admits 100 a second with a live key and 25 with a sandbox's key; the
    # difference is for calls that a caller waits for.
    stripe_calls_per_second: Annotated[float, Field(alias="BILLING_STRIPE_CALLS_PER_SECOND", ge=1, le=1000)] = 20

    # About how many reads a pass of the scheduled comparison makes; 0: there is no schedule.
    reconcile_reads_max: Annotated[int, Field(alias="BILLING_RECONCILE_READS_MAX", ge=0, le=1_000_000)] = 2000

    stripe_api_base: Annotated[str | None, Field(alias="STRIPE_API_BASE")] = None

    success_url: Annotated[str, Field(alias="BILLING_CHECKOUT_SUCCESS_URL")]
    cancel_url: Annotated[str, Field(alias="BILLING_CHECKOUT_CANCEL_URL")]
    # Where the portal sends the customer back to; default: `cancel_url`.
    portal_return_url: Annotated[str | None, Field(alias="BILLING_PORTAL_RETURN_URL")] = None
    # Origins (scheme://host[:port]) that a checkout or the portal may send the customer back to.
    redirect_origins: Annotated[tuple[str, ...], NoDecode, Field(alias="BILLING_REDIRECT_ORIGINS")] = ()

    @field_validator("redirect_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check(self) -> "Settings":
        for name, url in (
            ("BILLING_CHECKOUT_SUCCESS_URL", self.success_url),
            ("BILLING_CHECKOUT_CANCEL_URL", self.cancel_url),
            ("BILLING_PORTAL_RETURN_URL", self.portal_return_url),
            ("STRIPE_API_BASE", self.stripe_api_base),
            *(("BILLING_REDIRECT_ORIGINS", origin) for origin in self.redirect_origins),
        ):
            if url is not None and not _is_web_url(url):
                raise ValueError(f"{name} must be an http or https URL")
        key = self.stripe_api_key.get_secret_value()
        if not (key.isascii() and key.isprintable() and " " not in key):
            raise ValueError("STRIPE_API_KEY has characters that no key has, such as a space or a line break")
        if self.dev and (self.livemode or not is_loopback(self.listen)):
            raise ValueError(
                "BILLING_DEV admits every caller with the public token of `dev`: unset it, or listen on a loopback "
                "address and use a test key"
            )
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("BILLING_TLS_CERT_FILE and BILLING_TLS_KEY_FILE must be set together")
        if self.tls_client_ca_file is not None and not self.is_encrypted:
            raise ValueError("BILLING_TLS_CLIENT_CA_FILE needs BILLING_TLS_CERT_FILE and BILLING_TLS_KEY_FILE")
        if not (self.is_encrypted or self.allow_plaintext or is_loopback(self.listen)):
            raise ValueError(
                "BILLING_LISTEN: tokens would cross the network in plain text; set BILLING_TLS_CERT_FILE and "
                "BILLING_TLS_KEY_FILE, or BILLING_ALLOW_PLAINTEXT=1 where a mesh or a private network protects them"
            )
        return self

    @property
    def is_encrypted(self) -> bool:
        """Say whether the gRPC server speaks TLS."""
        return self.tls_cert_file is not None and self.tls_key_file is not None

    @property
    def usage_seal_interval(self) -> timedelta:
        """Return how often billable usage is sealed."""
        return timedelta(seconds=self.usage_seal_seconds or (1 if self.dev else 60))

    @property
    def usage_send_interval(self) -> timedelta:
        """Return how long a sealed usage report waits for more usage before it is sent."""
        return timedelta(seconds=self.usage_send_seconds or (1 if self.dev else 300))

    @property
    def livemode(self) -> bool:
        """Say whether the Stripe key is a live key, which moves real money."""
        return self.stripe_api_key.get_secret_value().startswith(("sk_live_", "rk_live_"))


def _is_web_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in {"http", "https"} and bool(parts.hostname)


def host_and_port(name: str, listen: str) -> tuple[str, int]:
    """Return host and port of `host:port` or `[host]:port`. Raises a SettingsError that names the variable."""
    host, _, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not (port.isascii() and port.isdigit()) or int(port) > PORT_MAX:
        raise SettingsError(f"{name} is not host:port, such as 127.0.0.1:9464")
    return host, int(port)


def is_loopback(listen: str) -> bool:
    """Say whether a listen address of gRPC can be reached from this machine only."""
    if listen.startswith(("unix:", "unix-abstract:")):
        return True
    host = listen.rpartition(":")[0].removeprefix("[").removesuffix("]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read() -> Settings:
    """Return the settings of this process. Raises a SettingsError that names each wrong variable, never a value."""
    return _read(Settings)


def read_database() -> DatabaseSettings:
    """Return the settings for commands that need only the database. Raises SettingsError as `read` does."""
    return _read(DatabaseSettings)


def _read(kind: type[T]) -> T:
    try:
        return kind()  # type: ignore[call-arg]  # the values come from the environment
    except ValidationError as error:
        raise SettingsError(
            "; ".join(_sentence(str(one["loc"][0]) if one["loc"] else "", one["msg"]) for one in error.errors())
        ) from None


def _sentence(name: str, problem: str) -> str:
    if problem == "Field required":
        return f"{name} is not set"
    return f"{name}: {problem}" if name else problem.removeprefix("Value error, ")
