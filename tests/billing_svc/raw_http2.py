"""Calls over HTTP/2 written by hand, with what gRPC's own clients refuse to send."""

import asyncio
from collections.abc import Sequence

HEADERS, DATA, SETTINGS, RST_STREAM = 1, 0, 4, 3
END_STREAM, END_HEADERS = 1, 4
SECONDS_MAX = 5
# In place of a message: the request begins and never ends, or ends without one.
UNFINISHED, ABSENT = object(), object()


async def call(port: int, path: bytes, headers: Sequence[tuple[bytes, bytes]], message: bytes | object = b"") -> bytes:
    """Send a call, and return all that came back until its stream or the connection ended."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(call_bytes(path, headers, message))
    came = b""
    try:
        async with asyncio.timeout(SECONDS_MAX):
            while True:
                head = await reader.readexactly(9)
                came += await reader.readexactly(int.from_bytes(head[:3], "big"))
                if head[3] in {HEADERS, DATA} and head[4] & END_STREAM:
                    return came
    except (asyncio.IncompleteReadError, ConnectionError):
        return came
    finally:
        writer.close()


def call_bytes(
    path: bytes, headers: Sequence[tuple[bytes, bytes]], message: bytes | object = b"", settings: bytes = b""
) -> bytes:
    """Return what begins a connection and makes a call, its stream 1."""
    pseudo = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"localhost")]
    usual = [(b"content-type", b"application/grpc"), (b"te", b"trailers")]
    block = b"".join(b"\0" + _text(name) + _text(value) for name, value in (*pseudo, *usual, *headers))
    sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, settings)
    sent += frame(HEADERS, END_HEADERS | (END_STREAM if message is ABSENT else 0), 1, block)
    if message is UNFINISHED:
        sent += frame(DATA, 0, 1, b"\0" + (1_000_000).to_bytes(4, "big") + b"begun")
    elif isinstance(message, bytes):
        sent += frame(DATA, END_STREAM, 1, b"\0" + len(message).to_bytes(4, "big") + message)
    return sent


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Return one frame."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def _text(value: bytes) -> bytes:
    assert len(value) < 127
    return bytes([len(value)]) + value
