from __future__ import annotations

import pytest
from accelerate.state import AcceleratorState


@pytest.fixture(autouse=True)
def fresh_accelerator() -> None:
    """Runs have a process each, and with it their own precision; tests share one process."""
    AcceleratorState._reset_state(reset_partial_state=True)
