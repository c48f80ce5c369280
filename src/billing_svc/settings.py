"""Every setting, read once from the environment into a typed object; `docs/settings.md` is the table."""

from pathlib import Path
from typing import Annotated, TypeVar
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

# What `dev` uses. Anyone may know them, so nothing else accepts them.
DEV_TOKEN = "dev-token"  # noqa: S105 - public on purpose
DEV_WEBHOOK_SECRET = "whsec_dev"  # noqa: S105 - public on purpose

T = TypeVar("T", bound="DatabaseSettings")


class SettingsError(Exception):
    """The environment lacks something or holds something wrong; one sentence for each."""


class DatabaseSettings(BaseSettings):
    """The settings of `migrate` and `catalog move`, which run where nobody gives away Stripe's key."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    database_url: Annotated[SecretStr, Field(alias="DATABASE_URL")]
    dev: Annotated[bool, Field(alias="BILLING_DEV")] = False
    log_level: Annotated[str, Field(alias="BILLING_LOG_LEVEL", pattern="^(debug|info|warning|error)$")] = "info"


class Settings(DatabaseSettings):
    """The settings of `serve`, `worker` and `catalog apply`."""

    listen: Annotated[str, Field(alias="BILLING_LISTEN")] = "127.0.0.1:50051"
    reflection: Annotated[bool, Field(alias="BILLING_REFLECTION")] = False
    callers_file: Annotated[Path | None, Field(alias="BILLING_CALLERS_FILE")] = None
    database_pool_size: Annotated[int, Field(alias="BILLING_DATABASE_POOL_SIZE", ge=1, le=200)] = 10

    stripe_api_key: Annotated[SecretStr, Field(alias="STRIPE_API_KEY")]
    stripe_api_base: Annotated[str | None, Field(alias="STRIPE_API_BASE")] = None

    success_url: Annotated[str, Field(alias="BILLING_CHECKOUT_SUCCESS_URL")]
    cancel_url: Annotated[str, Field(alias="BILLING_CHECKOUT_CANCEL_URL")]
    # Origins (scheme://host[:port]) that a checkout may send the customer back to.
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
        ):
            if urlsplit(url).scheme not in {"http", "https"}:
                raise ValueError(f"{name} must be an http or https URL")
        if not self.stripe_api_key.get_secret_value():
            raise ValueError("STRIPE_API_KEY must not be empty")
        return self

    @property
    def livemode(self) -> bool:
        """Say whether the Stripe key moves real money."""
        return self.stripe_api_key.get_secret_value().startswith(("sk_live_", "rk_live_"))


def read() -> Settings:
    """Return the settings of this process. Raises SettingsError that names each variable, never a value."""
    return _read(Settings)


def read_database() -> DatabaseSettings:
    """Return those settings that concern the database alone; else as `read`."""
    return _read(DatabaseSettings)


def _read(kind: type[T]) -> T:
    try:
        return kind()  # type: ignore[call-arg]  # the environment gives them
    except ValidationError as error:
        raise SettingsError(
            "; ".join(_sentence(str(one["loc"][0]) if one["loc"] else "", one["msg"]) for one in error.errors())
        ) from None


def _sentence(name: str, problem: str) -> str:
    if problem == "Field required":
        return f"{name} is not set"
    return f"{name}: {problem}" if name else problem.removeprefix("Value error, ")
