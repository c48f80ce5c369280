"""The settings are complete, or the gateway does not start and names the wrong variable."""

import pytest

from webhook_gateway import settings

VARIABLES = ("STRIPE_WEBHOOK_SECRETS", "BILLING_GRPC_TOKEN", "BILLING_GRPC_TARGET", "GATEWAY_LISTEN", "BILLING_DEV")
WHOLE = {"STRIPE_WEBHOOK_SECRETS": "whsec_0123456789abcdef", "BILLING_GRPC_TOKEN": "token-of-the-gateway"}


def read_from(monkeypatch: pytest.MonkeyPatch, **changed: str) -> settings.Settings:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in (WHOLE | changed).items():
        monkeypatch.setenv(name, value)
    return settings.read()


def test_the_defaults_stay_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    read = read_from(monkeypatch)

    assert (read.host, read.port, read.grpc_target) == ("127.0.0.1", 8080, "127.0.0.1:50051")


def test_secrets_are_a_list_and_blanks_around_them_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    read = read_from(monkeypatch, STRIPE_WEBHOOK_SECRETS=" whsec_new, whsec_old\n", BILLING_GRPC_TOKEN="token\n")

    assert read.webhook_secrets == (b"whsec_new", b"whsec_old")
    assert read.grpc_token == "token"


def test_dev_mode_takes_the_well_known_secret_and_token(monkeypatch: pytest.MonkeyPatch) -> None:
    read = read_from(monkeypatch, STRIPE_WEBHOOK_SECRETS="whsec_dev", BILLING_GRPC_TOKEN="dev-token", BILLING_DEV="1")

    assert (read.webhook_secrets, read.grpc_token) == ((b"whsec_dev",), "dev-token")


def test_dev_mode_is_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(settings.SettingsError, match="BILLING_DEV"):
        read_from(monkeypatch, GATEWAY_LISTEN="0.0.0.0:8080", BILLING_DEV="1")


def test_ipv6_addresses_are_written_in_brackets(monkeypatch: pytest.MonkeyPatch) -> None:
    read = read_from(monkeypatch, GATEWAY_LISTEN="[::1]:9090")

    assert (read.host, read.port) == ("::1", 9090)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("STRIPE_WEBHOOK_SECRETS", ""),
        ("STRIPE_WEBHOOK_SECRETS", "  "),
        ("STRIPE_WEBHOOK_SECRETS", ","),
        ("STRIPE_WEBHOOK_SECRETS", "whsec_real,"),
        ("STRIPE_WEBHOOK_SECRETS", "whsec_real,,whsec_more"),
        ("STRIPE_WEBHOOK_SECRETS", "whsec_dev"),
        ("STRIPE_WEBHOOK_SECRETS", "whsec_real, whsec_dev"),
        ("STRIPE_WEBHOOK_SECRETS", ",".join(f"whsec_real{number}" for number in range(9))),
        ("BILLING_GRPC_TOKEN", ""),
        ("BILLING_GRPC_TOKEN", "dev-token"),
        ("BILLING_GRPC_TOKEN", "tokén-real"),
        ("BILLING_GRPC_TOKEN", "token\nreal"),
        ("GATEWAY_LISTEN", "8080"),
        ("GATEWAY_LISTEN", "127.0.0.1:"),
        ("GATEWAY_LISTEN", ":8080"),
        ("GATEWAY_LISTEN", "127.0.0.1:65536"),
        ("GATEWAY_LISTEN", "127.0.0.1:http"),
        ("GATEWAY_METRICS_LISTEN", "9465"),
        ("BILLING_GRPC_CERT_FILE", "cert.pem"),
        ("BILLING_GRPC_KEY_FILE", "key.pem"),
        ("BILLING_DEV", "perhaps"),
    ],
)
def test_what_is_wrong_is_refused_in_one_sentence_that_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    with pytest.raises(settings.SettingsError) as caught:
        read_from(monkeypatch, **{variable: value})

    sentence = str(caught.value)
    assert variable in sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert "real" not in sentence


def test_printing_the_settings_shows_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    printed = repr(read_from(monkeypatch))

    assert not any(secret in printed for secret in WHOLE.values())
