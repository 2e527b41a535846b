"""The learning rates that are drawn before a run."""

from __future__ import annotations

import re

from dreambooth.core.run_length import budget
from dreambooth.core.settings import Settings
from dreambooth.ui.page.schedule_view import schedule_view


def drawn(html: str, part: str) -> list[tuple[float, float]]:
    """The points of a part's line."""
    found = re.search(rf'class="db-of-{part}" points="([^"]*)"', html)
    assert found, f"no line of {part}"
    return [(float(x), float(y)) for x, y in (point.split(",") for point in found[1].split())]


def cosine() -> Settings:
    own = Settings()
    own.learning.scheduler, own.learning.warmup, own.learning.minimum = "cosine", 0.25, 0.5
    return own


def test_the_line_is_the_schedules() -> None:
    points = drawn(schedule_view(cosine(), None), "unet")
    assert (points[0][0], points[-1][0]) == (0, 400)
    top = min(points, key=lambda point: point[1])
    assert top == (100, 4)  # a quarter of the way, at the upper edge
    assert points[0] == (0, 68)  # from zero
    assert points[-1][1] == (4 + 68) / 2  # to half of the rate


def test_the_text_encoder_has_a_line_of_its_own_where_it_learns() -> None:
    own = cosine()
    assert "Text encoder" not in schedule_view(own, None)
    own.tuning.text_encoder_ratio = 0.5
    shown = schedule_view(own, None)
    points = drawn(shown, "text_encoder")
    assert min(y for _, y in points) == 36  # at most half of the UNet's rate
    assert all(y == 68 for x, y in points if x >= 200)  # nothing after half of the run
    assert "Text encoder: starts at 0, highest 5e-05, ends at 0" in shown
    own.tuning.train_unet = False
    assert "db-of-unet" not in schedule_view(own, None)


def test_so_has_the_second_where_its_rate_is_another() -> None:
    own = cosine()
    own.tuning.text_encoder_ratio = 1.0
    assert "Second text encoder" not in schedule_view(own, None)
    own.learning.text_encoder_2_ratio = 0.5
    shown = schedule_view(own, None)
    tops = [min(y for _, y in drawn(shown, part)) for part in ("text_encoder", "text_encoder_2")]
    assert tops == [36, 52]
    assert "Second text encoder: starts at 0, highest 2.5e-05" in shown


def test_it_says_how_long_the_run_is_and_what_the_rate_is_of() -> None:
    own = cosine()
    assert "end of the run" in schedule_view(own, None)
    assert "500 steps" in schedule_view(own, budget(own, 5))
    own.optimizer.name, own.learning.lora_learning_rate = "prodigy", 1.0
    assert "Factor of the rate that Prodigy finds" in schedule_view(own, None)


def test_a_rate_of_nothing_is_a_flat_line() -> None:
    own = Settings()
    own.learning.lora_learning_rate = 0.0
    assert {y for _, y in drawn(schedule_view(own, None), "unet")} == {68}
