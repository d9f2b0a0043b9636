"""Pictures signed with the certificate of a small authority of the test's own, read back by the C2PA library."""

import datetime
import io
import json
from pathlib import Path
from typing import Any

import c2pa
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from services.diffusion.credentials import PARAMETERS, Credentials, CredentialsError, algorithm_of
from shared.contracts import OutputFormat
from shared.media import SourceType, decode_image, encode_image, read_text
from tests.shared.media.pictures import scene

SOFTWARE = "a renderer 1.2"
KEYS: dict[str, Any] = {
    "es256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "es384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
    "ps256": lambda: rsa.generate_private_key(65_537, 2_048),
}


def pem(key: Any) -> str:
    coded: bytes = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return coded.decode()


def chain_of(key: Any) -> str:
    """A certificate of the key for signing documents, and that of its issuer, as PEM."""
    authority = ec.generate_private_key(ec.SECP256R1())
    root, leaf = (
        x509.Name(
            [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Test"), x509.NameAttribute(NameOID.COMMON_NAME, name)]
        )
        for name in ("Root", "Signer")
    )
    now = datetime.datetime.now(datetime.UTC)

    def certificate(subject: x509.Name, public: Any, *, is_authority: bool) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(root)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=30))
            .add_extension(x509.BasicConstraints(is_authority, None), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(
                x509.KeyUsage(
                    digital_signature=True,
                    key_cert_sign=is_authority,
                    crl_sign=is_authority,
                    content_commitment=False,
                    key_encipherment=False,
                    data_encipherment=False,
                    key_agreement=False,
                    encipher_only=False,
                    decipher_only=False,
                ),
                critical=True,
            )
        )
        if not is_authority:
            usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
            builder = builder.add_extension(usage, critical=False)
        return builder.sign(authority, hashes.SHA256())

    made = (
        certificate(leaf, key.public_key(), is_authority=False),
        certificate(root, authority.public_key(), is_authority=True),
    )
    return "".join(one.public_bytes(serialization.Encoding.PEM).decode() for one in made)


def read(data: bytes, media_type: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(c2pa.Reader(media_type, io.BytesIO(data)).json())
    return found


def failures(report: dict[str, Any]) -> set[str]:
    """What is wrong, beside the authority that nobody has heard of."""
    return {one["code"] for one in report.get("validation_status", [])} - {"signingCredential.untrusted"}


@pytest.fixture(scope="module")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    folder = tmp_path_factory.mktemp("credentials")
    key = KEYS["es256"]()
    (folder / "chain.pem").write_text(chain_of(key))
    (folder / "key.pem").write_text(pem(key))
    return Credentials.open(folder / "chain.pem", folder / "key.pem", SOFTWARE)


@pytest.mark.parametrize("source", SourceType)
@pytest.mark.parametrize("output_format", OutputFormat)
def test_a_signed_picture_says_what_made_it_and_how(
    credentials: Credentials, output_format: OutputFormat, source: SourceType
) -> None:
    plain = encode_image(scene(), output_format, {"seed": "7"})
    signed = credentials.sign(plain, output_format.media_type, source, {"prompt": "雪人", "seed": 7})
    report = read(signed, output_format.media_type)
    assert failures(report) == set()
    manifest = report["manifests"][report["active_manifest"]]
    assertions = {one["label"]: one["data"] for one in manifest["assertions"]}
    [action] = assertions["c2pa.actions.v2"]["actions"]
    assert (action["action"], action["digitalSourceType"]) == ("c2pa.created", source)
    assert action["softwareAgent"] == {"name": "a renderer", "version": "1.2"}
    assert assertions[PARAMETERS] == {"prompt": "雪人", "seed": 7}
    assert np.array_equal(decode_image(signed), decode_image(plain))
    assert read_text(signed) == {"seed": "7"}


def test_a_changed_pixel_breaks_the_signature(credentials: Credentials) -> None:
    signed = credentials.sign(encode_image(scene(), OutputFormat.JPEG, {}), "image/jpeg", SourceType.GENERATED, {})
    at = signed.rindex(b"\xff\xda") + 20  # in the coded pixels
    changed = signed[:at] + bytes([signed[at] ^ 1]) + signed[at + 1 :]
    assert failures(read(changed, "image/jpeg")) == {"assertion.dataHash.mismatch"}


@pytest.mark.parametrize("name", KEYS)
def test_keys_of_every_kind_sign(name: str, tmp_path: Path) -> None:
    key = KEYS[name]()
    assert algorithm_of(pem(key)) == name
    (tmp_path / "chain.pem").write_text(chain_of(key))
    (tmp_path / "key.pem").write_text(pem(key))
    Credentials.open(tmp_path / "chain.pem", tmp_path / "key.pem", SOFTWARE)


def test_what_cannot_sign_is_refused_at_once(tmp_path: Path) -> None:
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    with pytest.raises(CredentialsError, match="cannot be read"):
        Credentials.open(chain, key, SOFTWARE)
    mine = KEYS["es256"]()
    chain.write_text(chain_of(mine))
    key.write_text("no key")
    with pytest.raises(CredentialsError, match="private key cannot be read"):
        Credentials.open(chain, key, SOFTWARE)
    key.write_text(pem(dsa.generate_private_key(1_024)))
    with pytest.raises(CredentialsError, match="C2PA signs with"):
        Credentials.open(chain, key, SOFTWARE)
    key.write_text(pem(mine))
    chain.write_text("no certificate")
    with pytest.raises(CredentialsError, match="nothing can be signed"):
        Credentials.open(chain, key, SOFTWARE)
    chain.write_text(chain_of(KEYS["es256"]()))
    with pytest.raises(CredentialsError, match="nothing can be signed"):
        Credentials.open(chain, key, SOFTWARE)
