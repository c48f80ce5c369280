"""The callers' file: what it may say, and that a change is in force without a restart."""

import asyncio
import hashlib
import os
import signal
from pathlib import Path
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from billing.v1 import usage_pb2
from billing_svc.api import access, callers
from billing_svc.platform import settings as settings_module
from tests.billing_svc import processes, refusals

SECONDS_MAX = 20
REQUEST = usage_pb2.GetUsageRequest(account_id="org_1")


def sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def entry(name: str = "console", *tokens: str, more: str = "") -> str:
    hashes = ", ".join(f'"{sha256(token)}"' for token in tokens)
    return f"  - {{name: {name}, groups: [subscription], token_sha256: [{hashes}]{more}}}\n"


def write(path: Path, *entries: str) -> None:
    """Replace the file in one step, as who rolls a token should."""
    beside = path.with_suffix(".new")
    beside.write_text("callers:\n" + "".join(entries))
    beside.replace(path)


def of(path: Path, **more: object) -> settings_module.Settings:
    return settings_module.Settings.model_validate(
        {
            "DATABASE_URL": "postgresql://nobody@127.0.0.1/nothing",
            "BILLING_CALLERS_FILE": path,
            "STRIPE_API_KEY": "sk_test_tests",
            "BILLING_CHECKOUT_SUCCESS_URL": "https://app.example.com/paid",
            "BILLING_CHECKOUT_CANCEL_URL": "https://app.example.com/plans",
            **more,
        }
    )


def test_every_token_and_certificate_of_a_caller_names_it(tmp_path: Path) -> None:
    path = tmp_path / "callers.yaml"
    write(path, entry("console", "old", "new", more=', certificates: ["spiffe://a/b"], account_prefix: "org_1"'))
    known = callers.read(of(path))
    caller = access.Caller("console", frozenset({access.Group.SUBSCRIPTION}), "org_1")
    assert [known.caller(f"Bearer {token}") for token in ("old", "new")] == [caller, caller]
    assert known.caller_of_certificate(["other", "spiffe://a/b"]) == caller


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("callers: [{name: a, groups: [check]}]", "needs token_sha256 or certificates"),
        ("callers: [{name: a, groups: [everything], certificates: [a]}]", "callers.0.groups"),
        ("callers: [{name: 'a b', groups: [check], certificates: [a]}]", "callers.0.name"),
        ("callers: [{name: a, groups: [check], token_sha256: [hunter2]}]", "callers.0.token_sha256.0"),
        ("callers: [{name: a, groups: [check], token: hunter2}]", "callers.0.token: Extra"),
        ("callers: [{name: a, groups: [check], certificates: [a], account_prefix: ''}]", "callers.0.account_prefix"),
        ("callers: [{name: a, groups: [check], certificates: [a], account_prefix: 'a b'}]", "callers.0.account_prefix"),
        ("callers: [{name: a, groups: [check], certificates: [a], account_prefix: ':'}]", "a letter or a digit"),
        ("callers: [{name: a, groups: [webhook], certificates: [a], account_prefix: 'a:'}]", "group webhook"),
        (
            "callers: [{name: a, groups: [], certificates: [a]}, {name: a, groups: [], certificates: [b]}]",
            "two callers have the same name",
        ),
        (
            "callers: [{name: a, groups: [], certificates: [a]}, {name: b, groups: [], certificates: [a]}]",
            "two callers have the same token or certificate",
        ),
        (f"callers:\n{entry('a', 'dev-token')}", "is public"),
        ("callers: []", "has no callers"),
        ("callers: hunter2", "callers"),
        ("callers: [", "cannot be read as YAML"),
        ("[" * 20_000, "cannot be read as YAML"),
        ("#" * (callers.FILE_BYTES_MAX + 1), "larger than"),
    ],
)
def test_a_bad_file_is_refused_with_a_sentence_that_quotes_nothing(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "callers.yaml"
    path.write_text(text)
    with pytest.raises(settings_module.SettingsError) as caught:
        callers.read(of(path))
    assert str(caught.value).startswith("BILLING_CALLERS_FILE")
    assert problem in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(settings_module.SettingsError, match="cannot be read"):
        callers.read(of(tmp_path / "nothing.yaml"))


def test_a_change_adds_and_removes_callers(tmp_path: Path) -> None:
    path = tmp_path / "callers.yaml"
    write(path, entry("console", "old"))
    followed = callers.Followed(of(path))
    write(path, entry("console", "new"))
    followed.look()
    assert followed.tokens.caller("Bearer new").name == "console"
    with pytest.raises(Exception, match="not known"):
        followed.tokens.caller("Bearer old")


def test_a_bad_change_keeps_the_callers_of_before_and_is_said_once(tmp_path: Path) -> None:
    path = tmp_path / "callers.yaml"
    write(path, entry("console", "old"))
    followed = callers.Followed(of(path))
    with capture_logs() as lines:
        for damage in (lambda: path.write_text("callers: ["), path.unlink):
            damage()
            followed.look()
            followed.look()
            assert followed.tokens.caller("Bearer old").name == "console"
            assert followed.is_stale
    assert [line["log_level"] for line in lines] == ["error", "error"]
    write(path, entry("console", "new"))
    followed.look()
    assert not followed.is_stale
    assert followed.tokens.caller("Bearer new").name == "console"


@pytest.mark.parametrize(
    ("listen", "more", "is_fit"),
    [
        ("127.0.0.1:50051", {}, True),
        ("[::1]:50051", {}, True),
        ("localhost:50051", {}, True),
        ("unix:/run/billing.sock", {}, True),
        ("0.0.0.0:50051", {}, False),
        ("[::]:50051", {}, False),
        ("10.0.0.1:50051", {}, False),
        ("billing.internal:50051", {}, False),
        ("0.0.0.0:50051", {"BILLING_ALLOW_PLAINTEXT": "1"}, True),
        ("0.0.0.0:50051", {"BILLING_DEV": "1"}, False),
        ("0.0.0.0:50051", {"BILLING_TLS_CERT_FILE": "c.pem", "BILLING_TLS_KEY_FILE": "k.pem"}, True),
        ("127.0.0.1:50051", {"BILLING_TLS_CERT_FILE": "c.pem"}, False),
        ("127.0.0.1:50051", {"BILLING_TLS_CLIENT_CA_FILE": "ca.pem"}, False),
    ],
)
def test_tokens_cross_no_network_in_plain_text_unless_told_so(
    tmp_path: Path, listen: str, more: dict[str, str], *, is_fit: bool
) -> None:
    if is_fit:
        assert of(tmp_path, BILLING_LISTEN=listen, **more).listen == listen
    else:
        with pytest.raises(ValueError, match="BILLING_"):
            of(tmp_path, BILLING_LISTEN=listen, **more)


@pytest.mark.usefixtures("published_catalog")
async def test_a_running_server_follows_the_file(database_url: str, tmp_path: Path) -> None:
    path = tmp_path / "callers.yaml"
    write(path, entry("console", "old"))
    more = processes.STOPS_SOON | {"BILLING_CALLERS_FILE": str(path), "BILLING_DEV": "0"}
    async with processes.servers(database_url, tmp_path, 1, more) as (one,), one.channel() as channel:
        stub = processes.usage_stub(channel)

        async def until(token: str, *, is_known: bool) -> None:
            async with asyncio.timeout(SECONDS_MAX):
                while await _is_known(stub, token) != is_known:
                    pass  # each round is a call

        await until("old", is_known=True)
        write(path, entry("console", "new", "old"))
        await until("new", is_known=True)
        assert await _is_known(stub, "old")
        path.write_text("callers: {")
        async with asyncio.timeout(SECONDS_MAX):
            while "callers_kept" not in one.log.read_text():  # noqa: ASYNC110 - another process writes it
                await asyncio.sleep(0.1)
        assert await _is_known(stub, "old")
        write(path, entry("console", "new"))
        os.utime(path, (0, 0))  # a date of before, as when a backup is put back
        await until("old", is_known=False)
        assert await _is_known(stub, "new")
        await one.kill(signal.SIGTERM)


async def _is_known(stub: Any, token: str) -> bool:  # noqa: ANN401 - a stub of the type hints alone
    try:
        await stub.GetUsage(REQUEST, metadata=(("authorization", f"Bearer {token}"),))
    except grpc.aio.AioRpcError as error:
        if refusals.of(error).reason != "UNAUTHENTICATED":
            raise
        return False
    return True
