"""Notifying a webhook that a run has ended."""

from __future__ import annotations

from dreambooth.core import webhook
from dreambooth.engine.work import Work


def notify_of_end(work: Work, ending: str) -> None:
    """Tells the webhook, if there is one, how the run ended. A failure to do so is only a warning."""
    url = work.settings.reporting.webhook_url.strip()
    if not url:
        return
    step = work.job.progress()
    at = f" at step {step['step']} of {step['steps']}" if step else ""
    if reason := webhook.post(url, f"DreamBooth: {work.job.name} is {ending}{at}."):
        work.job.warn(f"reporting.webhook_url: the notice could not be sent ({reason}); look at the address.")
