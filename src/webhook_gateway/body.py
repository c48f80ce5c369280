"""Reads a request's body within limits of size and time, or refuses it."""

import asyncio
from http import HTTPStatus

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

BYTES_MAX = 256 * 1024  # Stripe's largest events are far smaller; times the concurrent requests, it bounds the memory
READ_SECONDS_MAX = 10  # for the whole body: Stripe sends it at once, and waits at most 20 s for the answer
DISCARDED_BYTES_MAX = 8 * BYTES_MAX  # how much is read and dropped, so that a client can read its 413


class BodyRefusedError(Exception):
    """The body was not read to its end; `status` and `reason` are the answer."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


async def read(request: Request, seconds_max: float) -> bytes:
    """Return the whole body, at most BYTES_MAX bytes. Raises BodyRefusedError."""
    # h11 accepts only digits as content-length. A chunked body has no content-length; its bytes are counted below.
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
    """Sends the whole answer at once, then drops the bytes that the client still sends, then closes the connection.

    Closing with unread bytes would reset the connection, and a client that writes before it reads would never see
    that its body was too large. The discarding has limits of bytes and time.
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
