"""The gateway's settings: environment variables, read once into a typed, frozen object.

| variable | default | meaning |
|---|---|---|
| `STRIPE_WEBHOOK_SECRETS` | (required) | signing secrets, comma-separated; several during a rotation |
| `BILLING_GRPC_TOKEN` | (required without a certificate) | sent to the service as `authorization: Bearer <token>` |
| `BILLING_GRPC_TARGET` | `127.0.0.1:50051` | the service's gRPC address |
| `BILLING_GRPC_CA_FILE` | (none: plain text) | the authorities (PEM) of the service's certificate |
| `BILLING_GRPC_CERT_FILE`, `BILLING_GRPC_KEY_FILE` | (none) | the gateway's own certificate and key (PEM) |
| `GATEWAY_LISTEN` | `127.0.0.1:8080` | the address to listen on, `host:port`; port 0 takes a free port |
| `GATEWAY_METRICS_LISTEN` | (none) | the address for Prometheus, `host:port`; must not be public |
| `BILLING_DEV` | `0` | `1` allows the well-known secret and token of `billing-svc dev` |
"""

from dataclasses import dataclass, field
from pathlib import Path

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from webhook_gateway import channel

SECRETS_MAX = 8  # each secret costs an HMAC over the body of every request, signed or not
DEV_SECRET = "whsec_dev"  # noqa: S105 - public, so it is refused outside of dev
DEV_TOKEN = "dev-token"  # noqa: S105 - as above
_PORT_MAX = 65535
_OWN_HOSTS = {"127.0.0.1", "::1", "localhost"}


class SettingsError(Exception):
    """The gateway cannot start with these settings; the message names the variable and never quotes a secret."""


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of the gateway."""

    host: str
    port: int
    grpc_target: str
    grpc_token: str | None = field(repr=False)
    webhook_secrets: tuple[bytes, ...] = field(repr=False)
    tls: channel.Files | None = None
    metrics: tuple[str, int] | None = None


class _Environment(BaseSettings):
    """The variables as they are set; missing and empty values get their error messages below."""

    model_config = SettingsConfigDict(hide_input_in_errors=True, env_ignore_empty=True, frozen=True)

    secrets: SecretStr = Field(default=SecretStr(""), validation_alias="STRIPE_WEBHOOK_SECRETS")
    token: SecretStr = Field(default=SecretStr(""), validation_alias="BILLING_GRPC_TOKEN")
    target: str = Field(default="127.0.0.1:50051", validation_alias="BILLING_GRPC_TARGET")
    ca_file: Path | None = Field(default=None, validation_alias="BILLING_GRPC_CA_FILE")
    cert_file: Path | None = Field(default=None, validation_alias="BILLING_GRPC_CERT_FILE")
    key_file: Path | None = Field(default=None, validation_alias="BILLING_GRPC_KEY_FILE")
    listen: str = Field(default="127.0.0.1:8080", validation_alias="GATEWAY_LISTEN")
    metrics_listen: str | None = Field(default=None, validation_alias="GATEWAY_METRICS_LISTEN")
    dev: bool = Field(default=False, validation_alias="BILLING_DEV")


def read() -> Settings:
    """Return the settings of this process's environment; raises SettingsError with a single sentence."""
    try:
        environment = _Environment()
    except ValidationError as error:
        # Only the variable and the rule: pydantic's own text could quote the value.
        problems = "; ".join(f"{problem['loc'][0]}: {problem['msg']}" for problem in error.errors(include_input=False))
        raise SettingsError(f"The settings cannot be used: {problems}.") from None
    host, port = _read_listen("GATEWAY_LISTEN", environment.listen)
    if environment.dev and host not in _OWN_HOSTS:
        raise SettingsError("BILLING_DEV=1 accepts a public secret: allowed only if GATEWAY_LISTEN is 127.0.0.1.")
    metrics_listen = environment.metrics_listen
    return Settings(
        host=host,
        port=port,
        grpc_target=environment.target.strip(),
        grpc_token=_read_token(
            environment.token.get_secret_value(), dev=environment.dev, optional=environment.cert_file is not None
        ),
        webhook_secrets=_read_secrets(environment.secrets.get_secret_value(), dev=environment.dev),
        tls=_read_tls(environment.ca_file, environment.cert_file, environment.key_file),
        metrics=None if metrics_listen is None else _read_listen("GATEWAY_METRICS_LISTEN", metrics_listen),
    )


def _read_tls(ca_file: Path | None, cert_file: Path | None, key_file: Path | None) -> channel.Files | None:
    if (cert_file is None) != (key_file is None):
        raise SettingsError("BILLING_GRPC_CERT_FILE and BILLING_GRPC_KEY_FILE must be set together: set both or none.")
    if ca_file is None:
        if cert_file is not None:
            raise SettingsError("BILLING_GRPC_CERT_FILE needs BILLING_GRPC_CA_FILE, which verifies the service.")
        return None
    return channel.Files(ca_file, cert_file, key_file)


def _read_secrets(text: str, *, dev: bool) -> tuple[bytes, ...]:
    if not text.strip():
        raise SettingsError("STRIPE_WEBHOOK_SECRETS is missing: set it to the endpoint's signing secret (whsec_...).")
    secrets = [secret.strip() for secret in text.split(",")]
    if not all(secrets):
        raise SettingsError(
            "STRIPE_WEBHOOK_SECRETS has an empty entry: anyone can forge a signature for an empty secret."
        )
    if len(secrets) > SECRETS_MAX:
        raise SettingsError(f"STRIPE_WEBHOOK_SECRETS has more than {SECRETS_MAX} entries.")
    if DEV_SECRET in secrets and not dev:
        raise SettingsError(f"STRIPE_WEBHOOK_SECRETS has {DEV_SECRET}, which is public: only for BILLING_DEV=1.")
    return tuple(secret.encode() for secret in secrets)


def _read_token(text: str, *, dev: bool, optional: bool) -> str | None:
    token = text.strip()
    if not token and optional:
        return None
    if not token:
        raise SettingsError("BILLING_GRPC_TOKEN is missing: set it to the gateway's token at the billing service.")
    if not (token.isascii() and token.isprintable()):
        raise SettingsError("BILLING_GRPC_TOKEN has characters that a gRPC header cannot carry: use printable ASCII.")
    if token == DEV_TOKEN and not dev:
        raise SettingsError(f"BILLING_GRPC_TOKEN is {DEV_TOKEN}, which is public: only for BILLING_DEV=1.")
    return token


def _read_listen(name: str, text: str) -> tuple[str, int]:
    host, separator, port = text.strip().rpartition(":")
    host = host.removeprefix("[").removesuffix("]")  # [::1]:8080
    if not (separator and host and port.isascii() and port.isdigit() and int(port) <= _PORT_MAX):
        raise SettingsError(f"{name} is not host:port, such as 127.0.0.1:8080.")
    return host, int(port)
