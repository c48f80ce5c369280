"""Breaks connections, which ASGI has no message for."""

import asyncio

from starlette.requests import Request
from starlette.responses import Response

HOLD_SECONDS_MAX = 120.0
"""How long a caller without a timeout waits before its connection is cut."""


async def cut(request: Request) -> Response:
    """Cut the connection. The response only satisfies the type; it cannot be sent."""
    # `receive` is a method of uvicorn's request object, which has the transport as a private detail.
    transport = getattr(getattr(request.receive, "__self__", None), "transport", None)
    if transport is None:
        raise RuntimeError("connections cannot be cut under this server")
    transport.abort()
    await _gone(request)
    return Response()


async def lose_answer(request: Request, seconds: float | None) -> Response:
    """Send no answer. Waits until the caller disconnects, at most `seconds`; then cuts the connection."""
    try:
        async with asyncio.timeout(HOLD_SECONDS_MAX if seconds is None else seconds):
            await _gone(request)
    except TimeoutError:
        return await cut(request)
    return Response()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
