"""The server around the application: uvicorn with limits on connections and on requests that are not complete.

A proxy in front has to provide TLS, limits by address, and a maximum of open connections. A flood of connections is
answered with 503 here, and so are real deliveries, until the deadline below has closed the flood's connections.
"""

import asyncio

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from webhook_gateway import body, forwarding

HEAD_SECONDS_MAX = 10.0  # for sending a request's head, or the rest of a body that was answered early
HEAD_BYTES_MAX = 16 * 1024  # of a head that arrives in pieces; Stripe's heads have about 1 KiB
CONCURRENT_MAX = 128  # connections or requests, each with a body of 256 KiB at most: 32 MiB
KEEP_ALIVE_SECONDS = 5  # a reused connection saves Stripe a handshake; an idle connection counts as concurrent
SHUTDOWN_SECONDS_MAX = round(body.READ_SECONDS_MAX + forwarding.FORWARD_SECONDS_MAX) + 1  # the longest valid request


class PatientOnlySoLong(H11Protocol):
    """uvicorn's HTTP/1.1 with a deadline for a request's head; uvicorn itself waits for a head without limit.

    The deadline runs while the application has no request: from the start of the connection, or the first byte after an
    answer, until the next head is complete. Slowly arriving bytes do not extend it. A connection that is silent after
    an answer is closed by uvicorn's keep-alive.
    """

    head_seconds_max = HEAD_SECONDS_MAX
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Start the deadline with the connection."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Stop the deadline if these bytes complete a head; start it if they begin a head."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the deadline, which would keep this connection's objects alive."""
        super().connection_lost(exc)
        if self._deadline is not None:
            self._deadline.cancel()

    def _watch(self) -> None:
        with_application = self.conn.our_state in {h11.SEND_RESPONSE, h11.SEND_BODY}
        if with_application and self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        elif not with_application and self._deadline is None:
            self._deadline = self.loop.call_later(self.head_seconds_max, self.transport.abort)


def build_server(app: ASGIApp, host: str, port: int, head_seconds_max: float = HEAD_SECONDS_MAX) -> uvicorn.Server:
    """Return the server; it does not listen yet. At SIGTERM or SIGINT it answers the requests under way, then stops."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            http=type("Protocol", (PatientOnlySoLong,), {"head_seconds_max": head_seconds_max}),
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,  # the application writes its own log line, without the path
            server_header=False,
            proxy_headers=False,
            limit_concurrency=CONCURRENT_MAX,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=SHUTDOWN_SECONDS_MAX,
            h11_max_incomplete_event_size=HEAD_BYTES_MAX,
        )
    )
