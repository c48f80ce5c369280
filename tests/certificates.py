"""Certificates with URIs, which trustme does not issue."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True, slots=True)
class Leaf:
    """A certificate and its key, PEM."""

    cert: bytes
    key: bytes


def issue(authority: trustme.CA, *uris: str, names: tuple[str, ...] = (), common_name: str = "") -> Leaf:
    """Return a certificate of these names."""
    key = ec.generate_private_key(ec.SECP256R1())
    signer = serialization.load_pem_private_key(authority.private_key_pem.bytes(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    issuer = x509.load_pem_x509_certificate(authority.cert_pem.bytes())
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else []))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
    )
    others = [*(x509.UniformResourceIdentifier(uri) for uri in uris), *(x509.DNSName(name) for name in names)]
    if others:
        builder = builder.add_extension(x509.SubjectAlternativeName(others), critical=not common_name)
    pem = serialization.Encoding.PEM
    return Leaf(
        builder.sign(signer, hashes.SHA256()).public_bytes(pem),
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )
