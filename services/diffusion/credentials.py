"""Content Credentials: a signed C2PA manifest in every picture, for operators who have a certificate to sign with.

A manifest says that a model made the picture, with which software and by what parameters; whoever changes a pixel
breaks its signature. Timestamps and random ids are part of it, so the same picture signed twice is two files.
"""

from collections.abc import Mapping
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from shared.contracts import OutputFormat
from shared.errors import InternalError
from shared.media import SourceType, encode_image

SOFTWARE = f"llmga-serve {version('llmga-serve')}"
PARAMETERS = "org.llmga.parameters"  # the assertion that holds a picture's record

_INSTALL = "signed pictures need the package c2pa-python: install llmga-serve[c2pa]"


class CredentialsError(Exception):
    """Nothing can be signed with this certificate or key, or the library is not there."""


class Credentials:
    """A certificate chain and its key; any thread may sign."""

    def __init__(self, certificates: str, private_key: str, algorithm: str, software: str) -> None:
        """`certificates` and `private_key` are PEM, the leaf first; `software` is a name and a version.

        Raises:
            CredentialsError: the library is not installed.
        """
        try:
            import c2pa
        except ImportError as error:
            raise CredentialsError(_INSTALL) from error
        self._library = c2pa
        self._info = c2pa.C2paSignerInfo(algorithm, certificates.encode(), private_key.encode(), None)
        self._software = dict(zip(("name", "version"), software.rsplit(" ", 1), strict=True))

    @classmethod
    def open(cls, certificates: Path, private_key: Path, software: str) -> "Credentials":
        """Read both files and sign a probe, so that a wrong pair shows before the first picture.

        Raises:
            CredentialsError: that failed; the message says at what.
        """
        try:
            chain, key = certificates.read_text(encoding="ascii"), private_key.read_text(encoding="ascii")
        except (OSError, ValueError) as error:
            raise CredentialsError(f"certificates or key cannot be read: {error}") from error
        made = cls(chain, key, algorithm_of(key), software)
        made.probe()
        return made

    def probe(self) -> None:
        """Sign a picture of one pixel.

        Raises:
            CredentialsError: the certificate and the key do not go together, or C2PA does not accept them.
        """
        dot, kind = encode_image(np.zeros((1, 1, 3), np.uint8), OutputFormat.PNG, {}), OutputFormat.PNG.media_type
        try:
            self._signed(dot, kind, SourceType.GENERATED, {})
        except self._library.C2paError as error:
            raise CredentialsError(f"nothing can be signed with this certificate and key: {error}") from error

    def sign(self, data: bytes, media_type: str, source: SourceType, parameters: Mapping[str, Any]) -> bytes:
        """Return a picture's file with a manifest in it.

        Raises:
            InternalError: it could not be signed.
        """
        try:
            return self._signed(data, media_type, source, parameters)
        except self._library.C2paError as error:
            raise InternalError("The picture could not be signed.") from error

    def _signed(self, data: bytes, media_type: str, source: SourceType, parameters: Mapping[str, Any]) -> bytes:
        made = {"action": "c2pa.created", "digitalSourceType": source.value, "softwareAgent": self._software}
        manifest = {
            "claim_generator_info": [self._software],
            "format": media_type,
            "assertions": [
                {"label": "c2pa.actions.v2", "data": {"actions": [made]}},
                {"label": PARAMETERS, "data": dict(parameters), "kind": "Json"},
            ],
        }
        target = BytesIO()
        with self._library.Signer.from_info(self._info) as signer, self._library.Builder(manifest) as builder:
            builder.sign(signer, media_type, BytesIO(data), target)
        return target.getvalue()


def algorithm_of(private_key: str) -> str:
    """Return C2PA's name for the algorithm of a PEM key.

    Raises:
        CredentialsError: it is no key, is locked with a password, or C2PA has no algorithm for it.
    """
    try:
        from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ImportError as error:
        raise CredentialsError(_INSTALL) from error
    try:
        key = load_pem_private_key(private_key.encode(), password=None)
    except Exception as error:  # of many kinds, from a library in another language
        raise CredentialsError(f"the private key cannot be read (PEM, without a password): {error}") from error
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519"
    if isinstance(key, rsa.RSAPrivateKey):
        return "ps256"
    curves = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in curves:
        return curves[key.curve.name]
    raise CredentialsError(f"C2PA signs with ECDSA, RSA-PSS or Ed25519, not with {type(key).__name__}")
