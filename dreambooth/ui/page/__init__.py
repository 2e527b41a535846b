"""The page: one file a tab, one that turns settings into controls, one for what the buttons do."""

from dreambooth.ui.page.page import build

__all__ = ["build"]
