"""Telling a webhook that a run has ended."""

from __future__ import annotations

from dreambooth.core import webhook
from dreambooth.engine.work import Work


def tell_of_end(work: Work, ending: str) -> None:
    """Tells the webhook, if there is one, how the run ended; that it could not be told is a warning, no failure."""
    url = work.settings.reporting.webhook_url.strip()
    if not url:
        return
    step = work.job.progress()
    far = f" at step {step['step']} of {step['steps']}" if step else ""
    if reason := webhook.post(url, f"DreamBooth: {work.job.name} is {ending}{far}."):
        work.job.warn(f"reporting.webhook_url: the notice could not be sent ({reason}); look at the address.")
