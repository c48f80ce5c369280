"""The channel to the service: plain text, or TLS with certificates from files, which are read again after a change."""

import asyncio
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
import structlog

LOOK_SECONDS = 5.0  # the old certificate stays valid for hours after a renewal; a check costs three system calls
FILE_BYTES_MAX = 1024 * 1024  # enough for a bundle of authorities; a larger file is something else

_log = structlog.get_logger("webhook_gateway")


class CertificateError(Exception):
    """The files contain no usable certificate with its key, or no authorities; the message quotes no content."""


@dataclass(frozen=True, slots=True)
class Files:
    """The files for TLS to the service: its authorities, and for mutual TLS the gateway's certificate and key."""

    ca: Path
    cert: Path | None = None
    key: Path | None = None

    def stamps(self) -> tuple[tuple[int, int, int] | None, ...]:
        """Return inode, size and time of each file; a change of a file changes them."""
        return tuple(_stamp(path) for path in (self.ca, self.cert, self.key) if path is not None)

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files. Raises CertificateError."""
        try:
            # gRPC would find a wrong certificate only at the first handshake, and report nothing.
            context = ssl.create_default_context(cafile=self.ca)
            if self.cert is not None:
                context.load_cert_chain(self.cert, self.key, password=lambda: "")
            return grpc.ssl_channel_credentials(
                _read(self.ca),
                None if self.key is None else _read(self.key),
                None if self.cert is None else _read(self.cert),
            )
        except (OSError, ValueError) as error:  # SSLError is an OSError; its text quotes no key
            reason = error.reason if isinstance(error, ssl.SSLError) else getattr(error, "strerror", None)
            raise CertificateError(f"cannot be used together ({reason or 'unreadable'})") from None


class Channels:
    """The current channel. gRPC for Python cannot change a channel's certificate, so a new channel replaces it."""

    def __init__(
        self, target: str, options: Sequence[tuple[str, int]], files: Files | None, grace_seconds: float
    ) -> None:
        """`grace_seconds` is how long calls may finish after their channel is replaced. Raises CertificateError."""
        self._target = target
        self._options = options
        self._files = files
        self._grace_seconds = grace_seconds
        self._stamps = files.stamps() if files is not None else ()
        self._looked = 0.0
        # asyncio itself keeps only weak references to tasks.
        self._closing: set[asyncio.Task[None]] = set()
        self._channel = self._open()

    def current(self) -> grpc.aio.Channel:
        """Return the channel for the next call."""
        now = asyncio.get_running_loop().time()
        if self._files is not None and now - self._looked >= LOOK_SECONDS:
            self._looked = now
            self._renew(self._files.stamps())
        return self._channel

    async def close(self) -> None:
        """Close all channels; calls under way may finish."""
        await asyncio.gather(self._channel.close(grace=self._grace_seconds), *self._closing)

    def _renew(self, stamps: tuple[tuple[int, int, int] | None, ...]) -> None:
        if stamps == self._stamps:
            return
        self._stamps = stamps
        old = self._channel
        try:
            self._channel = self._open()
        except CertificateError as error:
            _log.error("certificate_kept", problem=str(error))
            return
        _log.info("certificate_reloaded")
        closing = asyncio.create_task(old.close(grace=self._grace_seconds))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    def _open(self) -> grpc.aio.Channel:
        if self._files is None:
            return grpc.aio.insecure_channel(self._target, options=self._options)
        return grpc.aio.secure_channel(self._target, self._files.credentials(), options=self._options)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(FILE_BYTES_MAX)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
