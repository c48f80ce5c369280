"""Connections that break: what ASGI has no words for."""

import asyncio

from starlette.requests import Request
from starlette.responses import Response

HOLD_SECONDS_MAX = 120.0
"""How long a caller who never gives up is left without an answer."""


async def cut(request: Request) -> Response:
    """Cut the connection; what is returned reaches nobody."""
    # uvicorn's own: what hands out the request's messages knows its transport.
    transport = getattr(getattr(request.receive, "__self__", None), "transport", None)
    if transport is None:
        raise RuntimeError("connections cannot be cut under this server")
    transport.abort()
    await _gone(request)
    return Response()


async def lose_answer(request: Request, seconds: float | None) -> Response:
    """Leave the caller without an answer: until it gives up, or until the connection is cut after some seconds."""
    try:
        async with asyncio.timeout(HOLD_SECONDS_MAX if seconds is None else seconds):
            await _gone(request)
    except TimeoutError:
        return await cut(request)
    return Response()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
