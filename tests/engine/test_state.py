"""A saved state is whole or it is not there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dreambooth.core.errors import UserError
from dreambooth.engine.training import state

WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "ema.a": torch.ones(1)}


def test_what_is_saved_comes_back_and_older_states_go(tmp_path: Path) -> None:
    state.save(tmp_path, 5, {"a": torch.zeros(1)}, {"step": 5})
    state.save(tmp_path, 10, WEIGHTS, {"step": 10, "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}}})
    loaded = state.load_newest(tmp_path)
    assert loaded
    weights, rest, warnings = loaded
    assert all(torch.equal(weights[name], WEIGHTS[name]) for name in WEIGHTS)
    assert (rest["step"], rest["optimizer"]["state"][0]["step"].item(), warnings) == (10, 3.0, [])
    assert [path.name for path in tmp_path.iterdir()] == ["000000010"]


def test_no_state_is_no_error(tmp_path: Path) -> None:
    assert state.load_newest(tmp_path / "none") is None


@pytest.mark.parametrize("damage", ["cut", "flip", "manifest", "half a manifest"])
def test_a_damaged_state_is_passed_over_and_said(tmp_path: Path, damage: str) -> None:
    older, newer = tmp_path / "000000005", tmp_path / "000000010"
    state.save(tmp_path, 5, WEIGHTS, {"step": 5})
    older.rename(tmp_path / "kept")
    state.save(tmp_path, 10, WEIGHTS, {"step": 10})
    (tmp_path / "kept").rename(older)
    data = bytearray((newer / "weights.safetensors").read_bytes())
    if damage == "cut":
        (newer / "weights.safetensors").write_bytes(data[:-1])
    elif damage == "flip":
        data[-1] ^= 1
        (newer / "weights.safetensors").write_bytes(data)
    elif damage == "manifest":
        (newer / "manifest.json").unlink()
    else:
        (newer / "manifest.json").write_text('{"position": 10')
    loaded = state.load_newest(tmp_path)
    assert loaded
    assert loaded[1]["step"] == 5
    assert "000000010" in loaded[2][0]
    (older / "rest.pt").unlink()
    with pytest.raises(UserError, match="every saved state is damaged"):
        state.load_newest(tmp_path)


def test_a_save_that_fails_keeps_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state.save(tmp_path, 5, WEIGHTS, {"step": 5})

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(UserError, match="the one before it is kept"):
        state.save(tmp_path, 10, WEIGHTS, {"step": 10})
    loaded = state.load_newest(tmp_path)
    assert loaded
    assert loaded[1]["step"] == 5
    assert [path.name for path in tmp_path.iterdir()] == ["000000005"]
