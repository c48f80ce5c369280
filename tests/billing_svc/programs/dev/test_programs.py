"""Whom `dev` works with: the sandbox, or with real test keys Stripe itself."""

from pathlib import Path

import pytest

from billing_svc.programs.commands import common
from billing_svc.programs.dev import folder, options, programs

CATALOG = Path(__file__).parents[4] / "catalogs" / "nyqst.yaml"
PORTS = options.Ports(1, 2, 3)


def read(monkeypatch: pytest.MonkeyPatch, **environment: str) -> options.Options:
    for name in ("STRIPE_API_KEY", "STRIPE_WEBHOOK_SECRET", "STRIPE_API_BASE", "BILLING_CLOCK_FILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return options.read(catalog=CATALOG, data_dir=Path("nowhere"), reset=False, requested=PORTS)


@pytest.mark.parametrize("key", ["", options.SANDBOX_KEY])
def test_without_a_key_of_stripes_dev_uses_the_sandbox(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, key: str
) -> None:
    chosen = read(monkeypatch, STRIPE_API_KEY=key, STRIPE_WEBHOOK_SECRET="whsec_1", STRIPE_API_BASE="http://stray")
    told = programs.environment(PORTS, "postgresql://", tmp_path, chosen.stripe)
    assert told["STRIPE_API_BASE"] == "http://127.0.0.1:3"
    assert told["STRIPE_API_KEY"] == options.SANDBOX_KEY
    assert told["STRIPE_WEBHOOK_SECRETS"] == "whsec_dev"
    assert told["BILLING_CLOCK_FILE"] == str(tmp_path / "clock")


@pytest.mark.parametrize("key", ["sk_test_51abc", "rk_test_51abc"])
def test_with_a_test_key_dev_uses_stripe_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, key: str) -> None:
    chosen = read(monkeypatch, STRIPE_API_KEY=key, STRIPE_WEBHOOK_SECRET="whsec_1", STRIPE_API_BASE="http://stray")
    told = programs.environment(PORTS, "postgresql://", tmp_path, chosen.stripe)
    assert (told["STRIPE_API_KEY"], told["STRIPE_WEBHOOK_SECRETS"]) == (key, "whsec_1")
    assert told.keys().isdisjoint({"STRIPE_API_BASE", "BILLING_CLOCK_FILE", "STRIPE_SANDBOX_WEBHOOK_SECRET"})
    assert chosen.requested.sandbox == 0
    assert key not in repr(chosen)


def test_a_test_key_alone_is_refused_with_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(common.Refusal, match="STRIPE_WEBHOOK_SECRET") as refused:
        read(monkeypatch, STRIPE_API_KEY="sk_test_51abc")
    assert "51abc" not in str(refused.value)


def test_a_folder_stays_with_the_sandbox_or_with_stripe(tmp_path: Path) -> None:
    state = programs.sandbox_state(tmp_path)
    folder.keep_to_one_stripe(tmp_path, state, sandbox=True)
    folder.keep_to_one_stripe(tmp_path, state, sandbox=False)
    folder.keep_to_one_stripe(tmp_path, state, sandbox=False)
    with pytest.raises(common.Refusal, match="--reset"):
        folder.keep_to_one_stripe(tmp_path, state, sandbox=True)
    folder.empty(tmp_path)
    state.touch()
    with pytest.raises(common.Refusal, match="--reset"):
        folder.keep_to_one_stripe(tmp_path, state, sandbox=False)
