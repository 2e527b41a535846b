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


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_a_line_that_moves_fits_the_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    terminal = Terminal(io.StringIO())
    terminal.moving = True
    step = {"event": "step", "step": 1116, "steps": 1800, "loss": 0.12345, "steps_per_second": 3.4, "seconds_left": 700}
    for event in ({**step, "memory_bytes": 8 << 30}, {"event": "stage", "name": "a stage " * 9, "done": 1, "total": 2}):
        terminal.event(event)
        shown = terminal.stream.getvalue().rpartition("\r")[2]
        assert 30 < len(shown) < columns
        assert ("step 1,116 of 1,800" in shown) == (event["event"] == "step")
    assert columns < 200 or "▓" in shown


def test_what_is_written_and_what_goes_again_is_told_in_lines_that_stay() -> None:
    stream = io.StringIO()
    told = Terminal(stream)
    told.event({"event": "saved", "path": "/a.safetensors", "bytes": 2e6})
    told.event({"event": "removed", "path": "/a.safetensors"})
    assert stream.getvalue().splitlines() == ["Saved /a.safetensors (2.0 MB)", "Removed /a.safetensors"]
