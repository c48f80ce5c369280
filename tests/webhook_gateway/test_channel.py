"""TLS to the service: which certificates each side accepts, and certificates that change while the gateway runs."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import httpx
import pytest
import trustme

from billing.v1 import stripe_event_pb2_grpc
from tests.webhook_gateway.conftest import TOKEN, ScriptedService
from webhook_gateway import channel, forwarding, metrics

NAME = "webhook-gateway.internal"


@pytest.fixture(name="authority", scope="module")
def certificate_authority() -> trustme.CA:
    return trustme.CA()


def write(folder: Path, authority: trustme.CA, issuer: trustme.CA) -> channel.Files:
    """Write the gateway's certificate files: the authority that it trusts, and its own certificate."""
    shown = issuer.issue_cert(NAME)
    files = channel.Files(folder / "ca.pem", folder / "cert.pem", folder / "key.pem")
    assert files.cert is not None
    assert files.key is not None
    files.ca.write_bytes(authority.cert_pem.bytes())
    files.cert.write_bytes(b"".join(one.bytes() for one in shown.cert_chain_pems))
    files.key.write_bytes(shown.private_key_pem.bytes())
    return files


@asynccontextmanager
async def serve_tls(service: ScriptedService, authority: trustme.CA, *believed: trustme.CA) -> AsyncIterator[int]:
    """Run a service that asks for certificates of the given authorities."""
    issued = authority.issue_cert("127.0.0.1")
    server = grpc.aio.server()
    stripe_event_pb2_grpc.add_StripeEventServiceServicer_to_server(service, server)
    pair = (issued.private_key_pem.bytes(), b"".join(one.bytes() for one in issued.cert_chain_pems))
    roots = b"".join(one.cert_pem.bytes() for one in believed)
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair], roots, bool(believed)))
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


async def outcome(forwarder: forwarding.Forwarder, event_id: str) -> forwarding.Outcome:
    return (await forwarder.forward(b"{}", event_id)).outcome


async def test_a_certificate_takes_the_token_s_place(
    service: ScriptedService, authority: trustme.CA, tmp_path: Path
) -> None:
    files = write(tmp_path, authority, authority)
    async with serve_tls(service, authority, authority) as port:
        async with forwarding.connect(f"127.0.0.1:{port}", None, files=files) as forwarder:
            assert await outcome(forwarder, "evt_1") is forwarding.Outcome.STORED
        async with forwarding.connect(f"127.0.0.1:{port}", TOKEN, files=channel.Files(files.ca)) as forwarder:
            assert await outcome(forwarder, "evt_2") is forwarding.Outcome.AWAY  # it presents no certificate
    assert service.tokens == {"None"}


async def test_a_service_that_the_authorities_do_not_vouch_for_gets_neither_token_nor_event(
    service: ScriptedService, authority: trustme.CA, tmp_path: Path
) -> None:
    files = channel.Files(write(tmp_path, authority, authority).ca)
    async with (
        serve_tls(service, trustme.CA()) as port,
        forwarding.connect(f"127.0.0.1:{port}", TOKEN, files=files) as forwarder,
    ):
        assert await outcome(forwarder, "evt_1") is forwarding.Outcome.AWAY
    assert service.calls == 0


async def test_renewed_files_are_used_without_a_restart_and_unfit_ones_are_not(
    service: ScriptedService, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "LOOK_SECONDS", 0.0)
    other = trustme.CA()
    files = write(tmp_path, authority, other)
    assert files.key is not None
    async with (
        serve_tls(service, authority, authority) as port,
        forwarding.connect(f"127.0.0.1:{port}", None, files=files) as forwarder,
    ):
        assert await outcome(forwarder, "evt_1") is forwarding.Outcome.AWAY
        write(tmp_path, authority, authority)
        assert await outcome(forwarder, "evt_2") is forwarding.Outcome.STORED
        files.key.write_bytes(b"nonsense")
        assert await outcome(forwarder, "evt_3") is forwarding.Outcome.STORED


async def test_calls_under_way_finish_on_the_channel_of_before(
    service: ScriptedService, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "LOOK_SECONDS", 0.0)
    service.delay_seconds = 0.5
    files = write(tmp_path, authority, authority)
    async with (
        serve_tls(service, authority, authority) as port,
        forwarding.connect(f"127.0.0.1:{port}", None, files=files) as forwarder,
    ):
        first = asyncio.create_task(outcome(forwarder, "evt_1"))
        while service.calls == 0:  # noqa: ASYNC110 - the call goes through gRPC's threads
            await asyncio.sleep(0.01)
        write(tmp_path, authority, authority)
        assert await outcome(forwarder, "evt_2") is forwarding.Outcome.STORED
        assert await first is forwarding.Outcome.STORED


@pytest.mark.parametrize("missing", ["ca", "cert", "key"])
async def test_files_that_cannot_be_used_stop_the_start(authority: trustme.CA, tmp_path: Path, missing: str) -> None:
    files = write(tmp_path, authority, authority)
    getattr(files, missing).unlink()
    with pytest.raises(channel.CertificateError):
        async with forwarding.connect("127.0.0.1:1", None, files=files):
            pass


async def test_the_metrics_are_told_on_a_port_of_their_own() -> None:
    counted = metrics.Metrics()
    counted.answered(200, "stored", 0.01)
    async with metrics.told(counted, "127.0.0.1", 0) as port, httpx.AsyncClient(trust_env=False) as client:
        text = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
    assert 'billing_gateway_requests_total{reason="stored",status="200"} 1.0' in text
