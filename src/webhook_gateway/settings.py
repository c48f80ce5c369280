"""The gateway's settings: environment variables, read once into a typed, frozen object.

| variable | default | meaning |
|---|---|---|
| `STRIPE_WEBHOOK_SECRETS` | (required) | signing secrets, comma-separated; several while one is being rolled |
| `BILLING_GRPC_TOKEN` | (required) | sent to the service as `authorization: Bearer <token>` |
| `BILLING_GRPC_TARGET` | `127.0.0.1:50051` | the service's gRPC address |
| `GATEWAY_LISTEN` | `127.0.0.1:8080` | the address to listen on, `host:port`; port 0 takes a free one |
| `BILLING_DEV` | `0` | `1` allows the well-known secret and token of `billing-svc dev` |
"""

from dataclasses import dataclass, field

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

SECRETS_MAX = 8  # each costs one HMAC over the body of any request, signed or not
DEV_SECRET = "whsec_dev"  # noqa: S105 - known to everyone, which is why it is refused outside dev
DEV_TOKEN = "dev-token"  # noqa: S105 - as above
_PORT_MAX = 65535


class SettingsError(Exception):
    """Settings that the gateway must not start with; the text names the variable and never quotes a secret."""


@dataclass(frozen=True, slots=True)
class Settings:
    """All that the gateway can be told."""

    host: str
    port: int
    grpc_target: str
    grpc_token: str = field(repr=False)
    webhook_secrets: tuple[bytes, ...] = field(repr=False)


class _Environment(BaseSettings):
    """The variables as they stand; absence and emptiness are judged below, in sentences."""

    model_config = SettingsConfigDict(hide_input_in_errors=True, env_ignore_empty=True, frozen=True)

    secrets: SecretStr = Field(default=SecretStr(""), validation_alias="STRIPE_WEBHOOK_SECRETS")
    token: SecretStr = Field(default=SecretStr(""), validation_alias="BILLING_GRPC_TOKEN")
    target: str = Field(default="127.0.0.1:50051", validation_alias="BILLING_GRPC_TARGET")
    listen: str = Field(default="127.0.0.1:8080", validation_alias="GATEWAY_LISTEN")
    dev: bool = Field(default=False, validation_alias="BILLING_DEV")


def read() -> Settings:
    """Return the settings of this process's environment; raises SettingsError with one sentence."""
    try:
        environment = _Environment()
    except ValidationError as error:
        # Only the place and the rule: pydantic's own text could quote the value.
        problems = "; ".join(f"{problem['loc'][0]}: {problem['msg']}" for problem in error.errors(include_input=False))
        raise SettingsError(f"The settings are not usable: {problems}.") from None
    host, port = _read_listen(environment.listen)
    return Settings(
        host=host,
        port=port,
        grpc_target=environment.target.strip(),
        grpc_token=_read_token(environment.token.get_secret_value(), dev=environment.dev),
        webhook_secrets=_read_secrets(environment.secrets.get_secret_value(), dev=environment.dev),
    )


def _read_secrets(text: str, *, dev: bool) -> tuple[bytes, ...]:
    if not text.strip():
        raise SettingsError("STRIPE_WEBHOOK_SECRETS is missing: set it to the endpoint's signing secret (whsec_...).")
    secrets = [secret.strip() for secret in text.split(",")]
    if not all(secrets):
        raise SettingsError(
            "STRIPE_WEBHOOK_SECRETS has an empty entry: an empty secret verifies what anyone can forge."
        )
    if len(secrets) > SECRETS_MAX:
        raise SettingsError(f"STRIPE_WEBHOOK_SECRETS has more than {SECRETS_MAX} entries.")
    if DEV_SECRET in secrets and not dev:
        raise SettingsError(f"STRIPE_WEBHOOK_SECRETS has {DEV_SECRET}, which everyone knows: only for BILLING_DEV=1.")
    return tuple(secret.encode() for secret in secrets)


def _read_token(text: str, *, dev: bool) -> str:
    token = text.strip()
    if not token:
        raise SettingsError(
            "BILLING_GRPC_TOKEN is missing: set it to the token that the billing service gave the gateway."
        )
    if not (token.isascii() and token.isprintable()):
        raise SettingsError("BILLING_GRPC_TOKEN has characters that a gRPC header cannot carry: use printable ASCII.")
    if token == DEV_TOKEN and not dev:
        raise SettingsError(f"BILLING_GRPC_TOKEN is {DEV_TOKEN}, which everyone knows: only for BILLING_DEV=1.")
    return token


def _read_listen(text: str) -> tuple[str, int]:
    host, separator, port = text.strip().rpartition(":")
    host = host.removeprefix("[").removesuffix("]")  # [::1]:8080
    if not (separator and host and port.isascii() and port.isdigit() and int(port) <= _PORT_MAX):
        raise SettingsError("GATEWAY_LISTEN is not host:port, such as 127.0.0.1:8080.")
    return host, int(port)
