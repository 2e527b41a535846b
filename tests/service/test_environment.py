from __future__ import annotations

import json
import os
import re
import time
import types
from importlib.metadata import version
from pathlib import Path

import pytest

from dreambooth.core.errors import UserError
from dreambooth.core.layout import DEVELOPMENT_LOCK, LOCK
from dreambooth.service import environment, torch_build


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment folder that is complete and current."""
    monkeypatch.delenv(environment.VARIABLE, raising=False)
    monkeypatch.setattr(environment, "ENGINE", tmp_path)
    monkeypatch.setattr(environment, "STAMP", tmp_path / "stamp.json")
    environment.python().parent.mkdir()
    environment.python().touch()
    stamp = {"engine": environment.digest(LOCK), "development": environment.digest(DEVELOPMENT_LOCK)}
    (tmp_path / "stamp.json").write_text(json.dumps(stamp))
    return tmp_path


def test_a_current_environment_is_seen_at_once(fresh: Path) -> None:
    since = time.monotonic()
    assert environment.is_current(development=True)
    assert environment.ensure(pytest.fail) == environment.python()
    assert time.monotonic() - since < 0.2


def test_a_changed_lock_makes_it_stale(fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / "other-lock.txt"
    lock.write_text(LOCK.read_text() + "six==1.17.0\n")
    monkeypatch.setattr(environment, "LOCK", lock)
    assert not environment.is_current()


@pytest.mark.parametrize("damage", ["no stamp", "half a stamp", "no python"])
def test_an_interrupted_set_up_is_seen(fresh: Path, damage: str) -> None:
    if damage == "no stamp":
        (fresh / "stamp.json").unlink()
    elif damage == "half a stamp":
        (fresh / "stamp.json").write_text('{"engine": ')
    else:
        environment.python().unlink()
    assert not environment.is_current()


def test_another_engine_can_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(environment.VARIABLE, str(tmp_path / "no-python"))
    with pytest.raises(UserError, match=environment.VARIABLE):
        environment.python()
    (tmp_path / "python").touch()
    monkeypatch.setenv(environment.VARIABLE, str(tmp_path / "python"))
    assert environment.python() == tmp_path / "python"


@pytest.mark.skipif(os.name == "nt", reason="Windows starts no scripts this way")
def test_an_engine_that_does_not_work_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'ImportError: no torch' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv(environment.VARIABLE, str(broken))
    with pytest.raises(UserError, match=r"ImportError: no torch\. Run setup again"):
        environment.check()
    broken.write_bytes(b"\x7fELF of another machine")
    with pytest.raises(UserError, match=r"no Python that can be started"):
        environment.check()


def test_of_a_cards_error_the_line_is_told_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    said = (
        "Traceback (most recent call last):\n"
        "torch.AcceleratorError: CUDA error: no kernel image is available for execution on the device\n"
        "For debugging consider passing CUDA_LAUNCH_BLOCKING=1\n"
        "Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.\n\n"
    )
    ended = types.SimpleNamespace(stdout="", stderr=said, returncode=1)
    monkeypatch.setattr(environment.subprocess, "run", lambda *_, **__: ended)
    with pytest.raises(
        UserError, match=r"does not work: torch\.AcceleratorError: CUDA error: no kernel image .*device\."
    ):
        environment.check()


def test_the_engine_runs_what_the_lock_says() -> None:
    for line in environment._requirements(LOCK):
        name, wanted = line.split("==")
        assert version(name).split("+")[0] == wanted


@pytest.mark.parametrize("lock", [LOCK, DEVELOPMENT_LOCK], ids=lambda path: path.name)
def test_every_version_is_exact(lock: Path) -> None:
    lines = list(environment._requirements(lock))
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][^\s;,*]*", line) for line in lines)
    assert len({line.split("==")[0].lower() for line in lines}) == len(lines)


def test_engine_processes_leave_the_webui_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMMANDLINE_ARGS", "--medvram")
    monkeypatch.setenv("PYTHONPATH", "/webui")
    variables = environment.engine_variables()
    assert "COMMANDLINE_ARGS" not in variables
    assert "/webui" not in variables["PYTHONPATH"]
    assert variables["HF_HUB_OFFLINE"] == "1"


def test_a_mac_without_pytorch_is_refused_before_anything_is_fetched(
    monkeypatch: pytest.MonkeyPatch, fresh: Path
) -> None:
    intel = torch_build.Machine("Darwin", processor="x86_64", release="15.2")
    monkeypatch.setattr(torch_build, "look", lambda: intel)
    monkeypatch.setattr(environment, "make_venv", lambda *_: pytest.fail("an environment is made"))
    with pytest.raises(UserError, match=r"an Intel Mac cannot train\. DREAMBOOTH_ENGINE_PYTHON can name"):
        environment.set_up(lambda said: None)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("Collecting torch==2.13.0\n", "PyTorch: torch 2.13.0"),
        ("Progress 52428800 of 900000000\n", "PyTorch: 52 of 900 MB"),
        ("Progress 1 of 20\n", ""),
        ("  Using cached x.whl\n", ""),
    ],
)
def test_progress_of_the_set_up(line: str, shown: str) -> None:
    assert environment._pip_progress(line, "PyTorch") == shown
