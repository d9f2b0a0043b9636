"""Signatures of webhooks (Standard Webhooks 1.0: symmetric, version `v1`).

Each tenant has a secret of its own, made of the operator's, so that no tenant can sign what another one receives.
"""

import base64
import hashlib
import hmac

from shared.webhooks.settings import SECRET_PREFIX, secret_bytes


def tenant_secret(master: str, tenant: str) -> str:
    """Return the secret that a tenant verifies signatures with, in the form that libraries take."""
    digest = hmac.new(secret_bytes(master), f"llmga webhooks\n{tenant}".encode(), hashlib.sha256).digest()
    return SECRET_PREFIX + base64.b64encode(digest).decode()


def signature(secret: str, message_id: str, timestamp_s: int, body: bytes) -> str:
    """Return the value of `webhook-signature`."""
    content = f"{message_id}.{timestamp_s}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(secret_bytes(secret), content, hashlib.sha256).digest()).decode()
