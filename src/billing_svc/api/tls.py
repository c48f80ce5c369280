"""TLS of the gRPC server: its certificate and its clients' authorities, read again when their files change."""

import ssl
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import grpc
import structlog

from billing_svc.platform import settings

_log = structlog.get_logger("tls")

# Enough for a certificate chain or a bundle of authorities; a larger file is something else.
FILE_BYTES_MAX = 1024 * 1024


class Certificates:
    """The server's key and certificate, and the authorities of its clients, from their files."""

    def __init__(self, options: settings.Settings) -> None:
        """Read the files. Raises SettingsError if they contain no usable certificate with its key."""
        self._options = options
        self._stamp = self._stamps()
        self._current = self._load()

    def credentials(self) -> grpc.ServerCredentials:
        """Return a port's credentials; each new connection uses the files' current contents."""
        return grpc.dynamic_ssl_server_credentials(
            self._current,
            self._renewed,  # type: ignore[arg-type]  # None is no change
            # If authorities are set, a client without a certificate of theirs cannot connect.
            require_client_authentication=self._options.tls_client_ca_file is not None,
        )

    def _renewed(self) -> "grpc.ServerCertificateConfiguration | None":
        """Return the new configuration if the files have changed, else None: the old configuration stays.

        gRPC calls this in its own thread before each handshake. If the files do not match (for example while they are
        being replaced), they are read again after their next change.
        """
        stamp = self._stamps()
        if stamp == self._stamp:
            return None
        self._stamp = stamp
        try:
            self._current = self._load()
        except settings.SettingsError as error:
            _log.error("certificate_kept", problem=str(error))
            return None
        _log.info("certificate_reloaded")
        return self._current

    def _load(self) -> "grpc.ServerCertificateConfiguration":
        cert_file, key_file, ca_file = self._files()
        # gRPC would find a wrong certificate only at the first handshake, and report nothing.
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(cert_file, key_file, password=lambda: "")
            if ca_file is not None:
                context.load_verify_locations(ca_file)
        except (OSError, ValueError) as error:  # SSLError is an OSError; its text quotes no key
            reason = error.reason if isinstance(error, ssl.SSLError) else getattr(error, "strerror", None)
            raise settings.SettingsError(
                f"BILLING_TLS_CERT_FILE, BILLING_TLS_KEY_FILE, BILLING_TLS_CLIENT_CA_FILE: cannot be used together "
                f"({reason or 'unreadable'})"
            ) from None
        return grpc.ssl_server_certificate_configuration(
            [(_read(key_file), _read(cert_file))], None if ca_file is None else _read(ca_file)
        )

    def _files(self) -> tuple[Path, Path, Path | None]:
        cert_file, key_file = self._options.tls_cert_file, self._options.tls_key_file
        assert cert_file is not None  # noqa: S101 - the settings were checked
        assert key_file is not None  # noqa: S101 - as above
        return cert_file, key_file, self._options.tls_client_ca_file

    def _stamps(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(_stamp(path) for path in self._files() if path is not None)


def names(auth_context: Mapping[str, Iterable[bytes]]) -> Iterator[str]:
    """Yield the names of a verified client certificate: its URIs and DNS names; its common name if it has neither.

    A common name beside other names is ignored, as in servers' certificates: authorities check it less strictly.
    """
    found = [*auth_context.get("peer_uri", ()), *auth_context.get("peer_dns", ())]
    for name in found or auth_context.get("x509_common_name", ()):
        if name:
            yield name.decode(errors="replace")


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(FILE_BYTES_MAX)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
