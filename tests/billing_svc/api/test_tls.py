"""Mutual TLS: who a client certificate names, and certificates that change while the server runs."""

import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import trustme
from structlog.testing import capture_logs

from billing.v1 import usage_pb2, usage_pb2_grpc
from billing_svc.api import access, callers, tls
from billing_svc.platform import clock
from billing_svc.platform import settings as settings_module
from billing_svc.platform.database import transactions as transactions_module
from billing_svc.programs import server
from billing_svc.stripe import client
from tests import certificates
from tests.billing_svc import refusals
from tests.billing_svc.service import TOKEN

REQUEST = usage_pb2.GetUsageRequest(account_id="org_1")
URI = "spiffe://example.internal/run-service"


@dataclass(frozen=True, slots=True)
class Files:
    """The server's files, as an operator keeps them."""

    folder: Path

    def write(self, authority: trustme.CA, clients: trustme.CA) -> None:
        issued = authority.issue_cert("127.0.0.1", "localhost")
        (self.folder / "cert.pem").write_bytes(b"".join(one.bytes() for one in issued.cert_chain_pems))
        (self.folder / "key.pem").write_bytes(issued.private_key_pem.bytes())
        (self.folder / "clients.pem").write_bytes(clients.cert_pem.bytes())

    @property
    def variables(self) -> dict[str, str]:
        return {
            "BILLING_TLS_CERT_FILE": str(self.folder / "cert.pem"),
            "BILLING_TLS_KEY_FILE": str(self.folder / "key.pem"),
            "BILLING_TLS_CLIENT_CA_FILE": str(self.folder / "clients.pem"),
        }


@pytest.fixture(name="authority", scope="module")
def certificate_authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(name="files")
def certificate_files(tmp_path: Path, authority: trustme.CA) -> Files:
    files = Files(tmp_path)
    files.write(authority, authority)
    return files


def known() -> access.Tokens:
    groups = frozenset({access.Group.SUBSCRIPTION})
    return access.Tokens(
        [(access.Caller("by-token", groups), [hashlib.sha256(TOKEN.encode()).hexdigest()])],
        [
            (access.Caller("by-uri", groups), [URI]),
            (access.Caller("by-name", groups), ["run-service.internal", "plain-name"]),
            (access.Caller("without-groups", frozenset()), ["nobody.internal"]),
        ],
    )


@pytest.fixture(name="port")
async def secured_port(
    files: Files,
    settings: settings_module.Settings,
    transactions: transactions_module.Transactions,
    published_catalog: int,
) -> AsyncIterator[int]:
    assert published_catalog
    secured = settings_module.Settings.model_validate(settings.model_dump(by_alias=True) | files.variables)
    stripe = client.Stripe.from_settings(secured)
    running = await server.start(secured, transactions, stripe, clock.Clock(), known())
    yield running.port
    await running.stop(grace_seconds=1)
    await stripe.close()


async def call(
    port: int,
    authority: trustme.CA,
    shown: certificates.Leaf | None,
    metadata: tuple[tuple[str, str], ...] = (),
) -> refusals.Refusal | None:
    """Call on a connection of its own; None if it was answered."""
    credentials = grpc.ssl_channel_credentials(
        authority.cert_pem.bytes(),
        None if shown is None else shown.key,
        None if shown is None else shown.cert,
    )
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
        stub = usage_pb2_grpc.UsageServiceStub(channel)
        try:
            await stub.GetUsage(REQUEST, metadata=metadata, timeout=10)
        except grpc.aio.AioRpcError as error:
            return refusals.of(error)
    return None


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


@pytest.mark.usefixtures("each_transport")
async def test_a_certificate_names_its_caller(port: int, authority: trustme.CA) -> None:
    with capture_logs() as lines:
        assert await call(port, authority, certificates.issue(authority, URI)) is None
        assert await call(port, authority, certificates.issue(authority, names=("run-service.internal",))) is None
        assert await call(port, authority, certificates.issue(authority, common_name="plain-name")) is None
        assert await call(port, authority, certificates.issue(authority, URI), bearer(TOKEN)) is None
    calls = [line["caller"] for line in lines if line["event"] == "call"]
    assert calls == ["by-uri", "by-name", "by-name", "by-token"]


async def test_a_certificate_that_names_nobody_or_two_is_refused(port: int, authority: trustme.CA) -> None:
    for shown in (
        certificates.issue(authority, names=("stranger.internal",)),
        certificates.issue(authority, URI + "/sub"),
        certificates.issue(authority, URI, names=("run-service.internal",)),
        # Beside other names the common name counts for nothing.
        certificates.issue(authority, names=("stranger.internal",), common_name="plain-name"),
    ):
        refusal = await call(port, authority, shown)
        assert refusal is not None
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
    refusal = await call(port, authority, certificates.issue(authority, names=("nobody.internal",)))
    assert refusal is not None
    assert refusal.reason == "RPC_NOT_ALLOWED"


async def test_a_wrong_token_is_not_saved_by_a_certificate(port: int, authority: trustme.CA) -> None:
    refusal = await call(port, authority, certificates.issue(authority, URI), bearer("wrong"))
    assert refusal is not None
    assert refusal.code is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.usefixtures("each_transport")
async def test_without_a_certificate_of_the_authorities_there_is_no_connection(
    port: int, authority: trustme.CA
) -> None:
    for shown in (None, certificates.issue(trustme.CA(), URI)):
        refusal = await call(port, authority, shown, bearer(TOKEN))
        assert refusal is not None
        assert refusal.code is grpc.StatusCode.UNAVAILABLE
        assert refusal.reason == ""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = usage_pb2_grpc.UsageServiceStub(channel)
        refusal = await refusals.refused(stub.GetUsage(REQUEST, metadata=bearer(TOKEN), timeout=10))
        assert refusal.code is grpc.StatusCode.UNAVAILABLE


async def test_certificates_change_without_a_restart(port: int, authority: trustme.CA, files: Files) -> None:
    assert await call(port, authority, certificates.issue(authority, URI)) is None
    successor = trustme.CA()
    files.write(successor, successor)
    assert await call(port, successor, certificates.issue(successor, URI)) is None
    # Who was believed before no longer is.
    assert await call(port, successor, certificates.issue(authority, URI)) is not None
    assert await call(port, authority, certificates.issue(successor, URI)) is not None


async def test_files_that_do_not_fit_change_nothing(port: int, authority: trustme.CA, files: Files) -> None:
    with capture_logs() as lines:
        for name, content in (
            ("key.pem", trustme.CA().issue_cert("x").private_key_pem.bytes()),
            ("cert.pem", b"nonsense"),
            ("clients.pem", b""),
        ):
            (files.folder / name).write_bytes(content)
            assert await call(port, authority, certificates.issue(authority, URI)) is None
            assert await call(port, authority, certificates.issue(authority, URI)) is None
    assert [line["event"] for line in lines if line["event"] != "call"] == ["certificate_kept"] * 3
    files.write(authority, authority)
    assert await call(port, authority, certificates.issue(authority, URI)) is None


@pytest.mark.parametrize("missing", ["cert.pem", "key.pem", "clients.pem"])
def test_a_start_without_usable_files_is_refused(
    files: Files, settings: settings_module.Settings, missing: str
) -> None:
    (files.folder / missing).unlink()
    secured = settings_module.Settings.model_validate(settings.model_dump(by_alias=True) | files.variables)
    with pytest.raises(settings_module.SettingsError, match="BILLING_TLS_CERT_FILE"):
        tls.Certificates(secured)


def test_a_caller_by_certificate_alone_needs_no_token(tmp_path: Path, settings: settings_module.Settings) -> None:
    path = tmp_path / "callers.yaml"
    path.write_text(f"callers: [{{name: a, groups: [check], certificates: ['{URI}']}}]")
    chosen = settings_module.Settings.model_validate(
        settings.model_dump(by_alias=True) | {"BILLING_CALLERS_FILE": str(path)}
    )
    assert callers.read(chosen).caller_of_certificate([URI]).name == "a"
