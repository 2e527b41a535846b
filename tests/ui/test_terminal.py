from __future__ import annotations

import io

import pytest

from dreambooth.ui.terminal import Terminal


@pytest.mark.parametrize(("code_page", "bar"), [("utf-8", 12 * "▓" + 12 * "░"), ("cp1252", 12 * "#" + 12 * ".")])
def test_progress_is_drawn_with_what_the_stream_can_show(code_page: str, bar: str) -> None:
    written = io.BytesIO()
    terminal = Terminal(io.TextIOWrapper(written, encoding=code_page, newline=""))
    terminal.event({"event": "stage", "name": "encoding pictures", "done": 1, "total": 2})
    assert written.getvalue().decode(code_page) == f"{bar} encoding pictures 1 of 2\n"
