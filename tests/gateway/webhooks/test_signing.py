"""Signatures are those of Standard Webhooks."""

import base64

from shared.webhooks.signing import signature, tenant_secret

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def test_the_specification_s_example_is_signed_as_it_says() -> None:
    """The example of the reference libraries (standard-webhooks, `test_sign_function`)."""
    signed = signature(SECRET, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, b'{"test": 2432232314}')
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_tenants_have_secrets_of_their_own_that_stay_the_same() -> None:
    alice, bob = tenant_secret(SECRET, "alice"), tenant_secret(SECRET, "bob")
    assert alice == tenant_secret(SECRET, "alice") != bob
    assert len(base64.b64decode(alice.removeprefix("whsec_"))) == 32
