"""Reporting previews that were drawn."""

from __future__ import annotations

from pathlib import Path

from dreambooth.engine.training import preview
from dreambooth.engine.work import Work


def report_previews(work: Work, images: int, paths: list[Path]) -> None:
    """Adds previews that were drawn after so many images to the contact sheet of all, and reports them."""
    sheet, best = work.job.folder / "previews.png", work.job.story().best
    preview.contact_sheet(work.job.previews, work.settings, sheet, best=best.images if best else None)
    drawn = {"paths": [str(path) for path in paths], "prompts": preview.labels(work.settings)}
    work.job.report("preview", images=images, **drawn, sheet=str(sheet))
