"""The request's body: read within a size and a time, or refused without being kept."""

import asyncio
from http import HTTPStatus

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

BYTES_MAX = 256 * 1024  # Stripe's largest events stay well below; times the concurrent requests, it bounds the memory
READ_SECONDS_MAX = 10  # for all of it, whatever its pace: Stripe sends at once, and waits 20 s for the answer at most
DISCARDED_BYTES_MAX = 8 * BYTES_MAX  # what is read and dropped so that an honest client gets to see its 413


class BodyRefusedError(Exception):
    """A body that was not read to its end; `status` and `reason` are the answer."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


async def read(request: Request, seconds_max: float) -> bytes:
    """Return the whole body; keeps at most BYTES_MAX of it. Raises BodyRefusedError."""
    # h11 lets only digits through as a content-length; a chunked body has none and is counted as it comes.
    if int(request.headers.get("content-length", "0")) > BYTES_MAX:
        raise BodyRefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "body_too_large")
    body = bytearray()
    try:
        async with asyncio.timeout(seconds_max):
            async for chunk in request.stream():
                body += chunk
                if len(body) > BYTES_MAX:
                    raise BodyRefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "body_too_large")
    except TimeoutError:
        raise BodyRefusedError(HTTPStatus.REQUEST_TIMEOUT, "body_too_slow") from None
    except ClientDisconnect:
        raise BodyRefusedError(HTTPStatus.BAD_REQUEST, "client_disconnected") from None
    return bytes(body)


class AnswerThenDiscard:
    """Sends the whole answer at once, then drops what the client is still sending, then closes the connection.

    Closing with unread bytes would reset the connection, and a client that writes before it reads would never learn
    that its body was too large. Bounded in bytes and in time.
    """

    def __init__(self, answer: Response) -> None:
        self._answer = answer

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as an ASGI application."""
        start = {"type": "http.response.start", "status": self._answer.status_code}
        await send(start | {"headers": [*self._answer.raw_headers, (b"connection", b"close")]})
        await send({"type": "http.response.body", "body": self._answer.body, "more_body": True})
        await _discard(receive)
        await send({"type": "http.response.body"})


async def _discard(receive: Receive) -> None:
    discarded_bytes = 0
    try:
        async with asyncio.timeout(READ_SECONDS_MAX):
            while discarded_bytes < DISCARDED_BYTES_MAX:
                message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
                discarded_bytes += len(message["body"])
    except TimeoutError:
        return
