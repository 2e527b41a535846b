"""A saved state is whole or it is not there."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dreambooth.core.errors import UserError
from dreambooth.core.run_length import Budget
from dreambooth.engine.training import state, state_writer

CONTENT = {
    "weights": {"a": torch.arange(6.0).reshape(2, 3), "ema.a": torch.ones(1)},
    "rest": {"step": 10, "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}}},
}


def content(step: int) -> dict[str, Any]:
    return {"weights": {"a": torch.full((3,), float(step))}, "rest": {"step": step}}


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def newest(folder: Path) -> int:
    loaded = state.load_newest(folder)
    assert loaded
    assert torch.equal(loaded.content["weights"]["a"], content(loaded.content["rest"]["step"])["weights"]["a"])
    return int(loaded.content["rest"]["step"])


def test_what_is_saved_comes_back_and_older_states_go(tmp_path: Path) -> None:
    state.save(tmp_path, 5, content(5))
    state.save(tmp_path, 10, CONTENT)
    loaded = state.load_newest(tmp_path)
    assert loaded
    weights = loaded.content["weights"]
    assert all(torch.equal(weights[name], CONTENT["weights"][name]) for name in CONTENT["weights"])
    assert loaded.content["rest"]["optimizer"]["state"][0]["step"].item() == 3.0
    assert loaded.warnings == []
    assert [path.name for path in tmp_path.iterdir()] == ["000000010"]


def test_no_state_is_no_error(tmp_path: Path) -> None:
    assert state.load_newest(tmp_path / "none") is None


def both(folder: Path) -> list[int]:
    """Keeps every state."""
    state.save(folder, 5, content(5), set)
    state.save(folder, 10, content(10), set)
    return steps(folder)


def test_a_state_that_is_cut_anywhere_is_never_loaded(tmp_path: Path) -> None:
    assert both(tmp_path / "whole") == [5, 10]
    for name in ("state.pt", "manifest.json"):
        size = (tmp_path / "whole" / "000000010" / name).stat().st_size
        for length in [*range(0, size, max(1, size // 60)), size - 1]:
            folder = Path(shutil.copytree(tmp_path / "whole", tmp_path / "cut", dirs_exist_ok=True))
            os.truncate(folder / "000000010" / name, length)
            loaded = state.load_newest(folder)
            assert loaded
            assert loaded.content["rest"]["step"] == 5, (name, length)
            assert "000000010" in loaded.warnings[0]


def test_a_state_with_a_flipped_bit_is_never_loaded(tmp_path: Path) -> None:
    assert both(tmp_path) == [5, 10]
    chance = random.Random(0)
    for name in ("state.pt", "manifest.json"):
        path = tmp_path / "000000010" / name
        whole = path.read_bytes()
        for _ in range(200):
            place, bit = chance.randrange(len(whole)), chance.randrange(8)
            data = bytearray(whole)
            data[place] ^= 1 << bit
            path.write_bytes(data)
            # A bit of the manifest may be of no account, such as of a space or of the step, which the name says too.
            assert newest(tmp_path) in ((5,) if name == "state.pt" else (5, 10)), (place, bit)
        path.write_bytes(whole)
    assert newest(tmp_path) == 10


def test_all_states_damaged_is_an_error_that_says_so(tmp_path: Path) -> None:
    state.save(tmp_path, 5, content(5))
    (tmp_path / "000000005" / "state.pt").unlink()
    with pytest.raises(UserError, match="every saved state is damaged"):
        state.load_newest(tmp_path)


def test_going_on_from_before_a_damaged_state_leaves_nothing_behind_it(tmp_path: Path) -> None:
    both(tmp_path)
    (tmp_path / "000000010" / "manifest.json").write_text("{")
    state.save(tmp_path, 7, content(7))
    assert steps(tmp_path) == [7]


def test_the_last_few_states_and_one_of_each_so_many_epochs_stay(tmp_path: Path) -> None:
    length = Budget(pictures=4, epochs=100, batch=2, accumulation=1)  # an epoch is two steps
    for step in range(5, 60, 5):
        state.save(tmp_path, step, content(step), state_writer.retention_rule(length, last=2, every_epochs=10))
    assert steps(tmp_path) == [20, 40, 50, 55]


@pytest.mark.skipif(os.name == "nt", reason="Windows limits no files")
@pytest.mark.parametrize("room", range(0, 1300, 60))
def test_a_file_that_cannot_grow_any_further_keeps_the_state_before(tmp_path: Path, room: int) -> None:
    """In a process whose files may hold only so many bytes: the write itself fails, at each place in turn."""
    state.save(tmp_path, 5, content(5))
    size = (tmp_path / "000000005" / "state.pt").stat().st_size
    place = room * size // 1200

    import resource

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (place, place))
        with pytest.raises(state.NotSaved, match="what was saved before is kept"):
            state.save(tmp_path, 10, content(10))

    saved = in_a_fork(limited)
    assert (saved == 0) == (place < size), "it must fail exactly where it does not fit"
    assert steps(tmp_path) == ([5] if place < size else [10])
    assert newest(tmp_path) == steps(tmp_path)[0]


def test_a_full_disk_at_every_place_keeps_the_state_before(small_disk: Path) -> None:
    """On a real file system of a megabyte, filled up to less and less."""
    folder, ballast = small_disk / "state", small_disk / "ballast"
    state.save(folder, 1, content(1))
    failed = 0
    for pages in range(24):
        ballast.unlink(missing_ok=True)
        free = shutil.disk_usage(small_disk).free
        ballast.write_bytes(bytes(free - 4096 * pages))
        before = steps(folder)
        try:
            state.save(folder, 2 + pages, content(2 + pages))
            assert steps(folder) == [2 + pages]
        except state.NotSaved:
            failed += 1
            assert steps(folder) == before
        assert newest(folder) == steps(folder)[0]
        assert not [path for path in folder.iterdir() if not path.name.isdigit()]
    assert 0 < failed < 24


def test_the_writer_copies_and_lets_the_training_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on, told = threading.Event(), []
    saved = state.save

    def slow(*arguments: Any) -> Path:
        assert goes_on.wait(10)
        return saved(*arguments)

    monkeypatch.setattr(state, "save", slow)
    writer = state_writer.Writer(tmp_path, lambda steps: set(steps))
    weights = {"a": torch.full((3,), 5.0)}
    writer.begin(5, {"weights": weights, "rest": {"step": 5}}, told.append)
    weights["a"].fill_(float("nan"))  # training has gone on
    writer.poll(told.append)
    assert told == []
    goes_on.set()
    writer.finish(told.append)
    assert (told[0].step, told[0].problem) == (5, "")
    assert newest(tmp_path) == 5
    weights["a"].fill_(6.0)
    writer.begin(6, {"weights": weights, "rest": {"step": 6}}, told.append)
    writer.finish(told.append)
    assert newest(tmp_path) == 6


@pytest.mark.parametrize("known", [True, False])
def test_without_memory_for_a_copy_the_training_waits(
    known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is only known when it is asked for: pinned memory, of which there may be less than of plain."""
    told: list[state_writer.Written] = []

    def fails(*_: Any) -> Any:
        raise RuntimeError("CUDA error: out of memory")

    if known:
        monkeypatch.setattr(state_writer, "_SPARE", 2**60)
    else:
        monkeypatch.setattr(state_writer, "copy_to_cpu", fails)
    given_back: list[bool] = []
    monkeypatch.setattr(
        state_writer.hardware, "give_back_pinned", lambda: given_back.append(not any(tmp_path.iterdir()))
    )
    writer = state_writer.Writer(tmp_path, lambda steps: set(steps))
    writer.begin(5, content(5), told.append)
    assert newest(tmp_path) == 5
    assert given_back == [True], "before it is written"
    writer.poll(told.append)
    assert told[0].stalled == told[0].seconds > 0


def in_a_fork(work: Callable[[], None]) -> int:
    """Runs it in a process of its own; 0 if it went through."""
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException):
            work()
            code = 0
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
