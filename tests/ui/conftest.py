"""The page's tests run where gradio is: see tests/ui/page/conftest.py."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore = [] if find_spec("gradio") else ["page"]
