"""A notice to the webhook that is told of the ends of runs, sent now, to see that it comes."""

from __future__ import annotations

from dreambooth.core import settings, webhook
from dreambooth.core.errors import UserError

WEBHOOK = "reporting.webhook_url"
_TEXT = "DreamBooth: this is a test. The ends of runs will be told here."


def send(address: str, allowed: webhook.Allowed | None = None) -> str:
    """Tells the webhook something, as a run tells it of its end. Returns that it came; raises UserError for an address
    that will not do, or that could not be told. Only a test of ours names what is `allowed`."""
    if not address.strip():
        raise UserError(f"{WEBHOOK}: it is empty; paste the address that the service gave you.")
    if allowed is None:
        settings.parse({WEBHOOK: address})
    if reason := webhook.post(address.strip(), _TEXT, allowed or webhook.Allowed()):
        raise UserError(f"{WEBHOOK}: the test notice could not be sent ({reason}); look at the address.")
    return "The test notice was sent and has come."
