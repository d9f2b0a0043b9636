"""What holds for webhooks here, and whether a request keeps to it."""

from shared.contracts import FieldProblem
from shared.contracts.webhooks import Webhook, WebhookTerms, origin_of
from shared.errors import InvalidRequest
from shared.webhooks.settings import WebhookSettings
from shared.webhooks.signing import tenant_secret


def terms_for(tenant: str, settings: WebhookSettings) -> WebhookTerms:
    """Return where webhooks may go, and what the tenant verifies their signatures with."""
    if not settings.hosts:
        return WebhookTerms(origins=[])
    return WebhookTerms(origins=sorted(settings.origins), secret=tenant_secret(settings.secret, tenant))


def check_webhook(webhook: Webhook | None, settings: WebhookSettings) -> None:
    """Refuse a webhook to a host that the operator does not allow.

    Raises:
        InvalidRequest: it is one.
    """
    if webhook is not None and origin_of(webhook.url) not in settings.origins:
        message = "must be on one of the hosts that `GET /v1/webhooks` lists"
        problem = FieldProblem(field="webhook.url", code="not_offered", message=message)
        raise InvalidRequest("The operator allows no webhooks to this host.", errors=[problem])
