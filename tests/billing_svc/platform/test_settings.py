"""Wrong settings: a sentence that names the variable, and never its value."""

import pytest

from billing_svc.platform import settings

COMPLETE = {
    "DATABASE_URL": "postgresql://billing:x@127.0.0.1/billing",
    "STRIPE_API_KEY": "sk_test_x",
    "BILLING_CHECKOUT_SUCCESS_URL": "https://app.example.com/paid",
    "BILLING_CHECKOUT_CANCEL_URL": "https://app.example.com/plans",
}


def _read(monkeypatch: pytest.MonkeyPatch, **more: str) -> settings.Settings:
    for name, value in {**COMPLETE, **more}.items():
        monkeypatch.setenv(name, value)
    return settings.read()


@pytest.mark.parametrize(
    "name",
    [
        "BILLING_CHECKOUT_SUCCESS_URL",
        "BILLING_CHECKOUT_CANCEL_URL",
        "BILLING_PORTAL_RETURN_URL",
        "BILLING_REDIRECT_ORIGINS",
        "STRIPE_API_BASE",
    ],
)
@pytest.mark.parametrize("value", ["hunter2", "javascript:hunter2", "http://[hunter2", "https:///hunter2"])
def test_what_must_be_a_web_address_is_one(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    with pytest.raises(settings.SettingsError) as caught:
        _read(monkeypatch, **{name: value})
    assert name in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("value", ["sk_test_hunter2\n", "sk_test hunter2", "sk_test_hunter2é"])
def test_a_key_that_no_header_could_carry_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    with pytest.raises(settings.SettingsError, match="STRIPE_API_KEY") as caught:
        _read(monkeypatch, STRIPE_API_KEY=value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "more",
    [
        {"BILLING_LISTEN": "0.0.0.0:50051", "BILLING_ALLOW_PLAINTEXT": "1"},
        {"BILLING_LISTEN": "10.0.0.1:1", "BILLING_TLS_CERT_FILE": "c.pem", "BILLING_TLS_KEY_FILE": "k.pem"},
        {"STRIPE_API_KEY": "sk_live_x"},
    ],
)
def test_the_token_that_everyone_knows_is_for_this_machine_and_no_real_money(
    monkeypatch: pytest.MonkeyPatch, more: dict[str, str]
) -> None:
    assert not _read(monkeypatch, **more).dev
    with pytest.raises(settings.SettingsError, match="BILLING_DEV"):
        _read(monkeypatch, BILLING_DEV="1", **more)


def test_an_address_is_not_quoted() -> None:
    with pytest.raises(settings.SettingsError, match="BILLING_MONITORING_LISTEN") as caught:
        settings.host_and_port("BILLING_MONITORING_LISTEN", "hunter2")
    assert "hunter2" not in str(caught.value)
