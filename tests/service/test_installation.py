"""install.py: a stamp is compared; the set-up runs beside the WebUI; a failure is a sentence in the tab."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dreambooth.core.errors import UserError
from dreambooth.core.files import atomic, lock
from dreambooth.core.install_paths import PROJECT
from dreambooth.core.job_folder import Job
from dreambooth.service import environment, installation, queue, self_check


@pytest.fixture(autouse=True)
def _bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No engine, and nothing remembered."""
    monkeypatch.delenv("DREAMBOOTH_ENGINE_PYTHON", raising=False)
    monkeypatch.setattr(environment, "STAMP", tmp_path / "stamp.json")
    monkeypatch.setattr(environment, "SETTING_UP", tmp_path / "setting-up")
    monkeypatch.setattr(installation, "NOTE", tmp_path / "note.json")
    monkeypatch.setattr(installation, "LOG", tmp_path / "log")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    commands: list[list[str]] = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **_: commands.append(command))
    return commands


def test_the_first_start_sets_up_beside_the_webui_and_later_ones_do_not(
    started: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "in the background" in installation.on_start()
    assert [command[0] for command in started] == [sys.executable]
    assert "is being set up" in installation.on_start(), "it may not have come to say so itself yet"
    monkeypatch.setattr(installation, "_STARTING_SECONDS", 0)
    said = installation.on_start()
    assert "ended before it was done" in said and len(started) == 1, "a person starts the second try"
    assert installation.state()["problem"] in said


def test_the_page_without_a_webui_sets_up_beside_itself_and_says_how_much_that_is(
    started: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = installation.on_own_page()
    assert "in the background" in said and "1.5 GB" in said and len(started) == 1
    assert "already" in installation.on_own_page() and len(started) == 1
    monkeypatch.setattr(installation, "_STARTING_SECONDS", 0)
    assert "in the background" in installation.on_own_page() and len(started) == 2, "a person has started it again"
    monkeypatch.setattr(environment, "is_current", lambda **_: True)
    assert installation.on_own_page() == "" and len(started) == 2


def test_another_engines_python_that_is_not_there_is_told_and_nothing_is_set_up(
    started: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(environment.VARIABLE, str(tmp_path / "none"))
    told = f"{environment.VARIABLE} names {tmp_path / 'none'}, but there is no such file; correct or remove it."
    assert not installation.state()["ready"] and installation.state()["problem"] == told
    assert told in installation.on_start() and told in installation.on_own_page() and not started
    job = Job(tmp_path / "model" / "runs" / "0001")
    with pytest.raises(UserError, match="there is no such file"):
        queue.submit(job)


def test_a_set_up_that_cannot_be_started_is_not_said_to_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As where the WebUI's Python has been moved while it runs."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "gone"))
    for _ in range(2):
        with pytest.raises(UserError, match=r"The engine cannot be set up \(\[Errno 2\] .*gone'\)\. Run setup again"):
            installation.begin()
    assert not installation.state()["working"] and "gone" in installation.state()["problem"]


def test_a_set_up_that_was_ended_while_it_looked_whether_all_works_is_over() -> None:
    """Its note is young, as a repair takes minutes; before a set-up only one that is current is looked at."""
    installation._write_note(
        {"lock": environment.lock_digest(), "said": environment.CHECKING, "time": time.time() - 60}
    )
    assert not installation.state()["working"]
    assert "ended before it was done" in installation.on_start()


def test_two_presses_of_the_button_start_one_set_up(started: list[Any]) -> None:
    """The first has not come to hold the lock yet; a second one would do all of it once more, after the first."""
    installation.begin()
    with pytest.raises(UserError, match="already"):
        installation.begin()
    assert len(started) == 1


def test_an_environment_whose_python_was_moved_is_made_anew(
    started: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As with a portable WebUI on Windows, that has its Python beside it: what is in the environment starts that one,
    by its place."""
    engine, portable = tmp_path / "engine", tmp_path / "portable"
    portable.mkdir()
    monkeypatch.setattr(environment, "ENGINE", engine)
    environment.python().parent.mkdir(parents=True)
    environment.python().touch()
    (engine / "pyvenv.cfg").write_text(f"home = {portable}\ninclude-system-site-packages = false\n", encoding="utf-8")
    environment.STAMP.write_text(json.dumps({"engine": environment.lock_digest()}))
    assert installation.on_start() == "" and installation.state()["ready"]
    portable.rename(tmp_path / "elsewhere")
    assert "Python that the engine's environment was made with is gone" in installation.state()["problem"]
    assert "in the background" in installation.on_start() and len(started) == 1


def test_a_portable_python_finds_the_set_up_too(started: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """It has a fixed list of places for modules, and where it was started is none of them."""
    installation.begin()
    ((python, *arguments),) = started
    monkeypatch.undo()
    was_made = environment.was_made()
    alone = {**os.environ, "DREAMBOOTH_ENGINE_PYTHON": "/no-python"}
    said = subprocess.run([python, "-I", *arguments], capture_output=True, text=True, cwd="/", env=alone)
    assert "DREAMBOOTH_ENGINE_PYTHON names /no-python" in said.stdout + said.stderr
    assert environment.was_made() == was_made, "an engine that is there stays as it is"


def test_an_update_of_the_packages_is_tried_once(started: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    installation.on_start()
    monkeypatch.setattr(environment, "lock_digest", lambda: "another")
    installation.on_start()
    installation.on_start()
    assert len(started) == 2


def test_a_set_up_that_is_under_way_is_not_started_again(started: list[Any]) -> None:
    held = lock.acquire(environment.SETTING_UP)
    assert held
    assert "is being set up" in installation.on_start()
    assert installation.state()["working"]
    with pytest.raises(UserError, match="already"):
        installation.begin()
    held.close()
    assert not started and not installation.state()["working"]


def test_how_far_it_is_and_why_it_failed_are_what_the_tab_says(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def fail(progress: Any, *, development: bool) -> None:
        held = lock.acquire(environment.SETTING_UP)
        progress("PyTorch: 1 of 2 MB")
        seen.append(installation.state())
        assert held
        held.close()
        raise UserError("The disk is full.")

    monkeypatch.setattr(environment, "set_up", fail)
    with pytest.raises(UserError):
        installation.set_up(lambda text: None)
    assert seen[0]["working"] and seen[0]["said"] == "PyTorch: 1 of 2 MB"
    assert installation.state()["problem"] == "The disk is full."
    assert "The disk is full." in installation.on_start()


def test_a_current_engine_is_ready_and_silent(monkeypatch: pytest.MonkeyPatch, started: list[Any]) -> None:
    monkeypatch.setenv("DREAMBOOTH_ENGINE_PYTHON", sys.executable)
    assert installation.on_start() == "" and not started
    assert installation.state()["ready"] and not installation.state()["problem"]


def _install(**variables: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """install.py as the WebUI runs it, and the CPU seconds that it took."""
    before = os.times()
    said = subprocess.run(
        [sys.executable, str(PROJECT / "install.py")],
        capture_output=True,
        text=True,
        env={**os.environ, **variables},
        cwd="/",
    )
    after = os.times()
    return said, after.children_user + after.children_system - before.children_user - before.children_system


def test_an_ordinary_start_costs_next_to_nothing() -> None:
    said, seconds = min((_install(DREAMBOOTH_ENGINE_PYTHON=sys.executable) for _ in range(3)), key=lambda pair: pair[1])
    assert (said.returncode, said.stdout, said.stderr) == (0, "", "")
    assert seconds < 0.2, f"{seconds:.2f} seconds"


def test_the_webui_starts_whatever_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "install.py").write_text((PROJECT / "install.py").read_text())
    alone = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, str(tmp_path / "install.py")]
    said = subprocess.run(command, capture_output=True, text=True, cwd="/", env=alone)
    assert said.returncode == 0 and "cannot be set up (ModuleNotFoundError" in said.stdout


@pytest.mark.parametrize("version", ["3.7", "3.8", "3.9"])
def test_a_python_that_is_too_old_is_told_so(version: str) -> None:
    python = next(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"), None) or shutil.which(f"python{version}")
    if not python:
        pytest.skip(f"there is no Python {version}")
    said = subprocess.run([str(python), str(PROJECT / "install.py")], capture_output=True, text=True, cwd="/")
    told = f"Dreambooth: this WebUI's Python is {version}, but it needs 3.10 or newer.\n"
    assert (said.returncode, said.stdout) == (0, told), said.stderr


def test_install_says_what_its_console_has_no_letters_for(tmp_path: Path) -> None:
    """A WebUI on Windows reads it through a pipe of the system's code page."""
    service = tmp_path / "dreambooth" / "service"
    service.mkdir(parents=True)
    for package in (service.parent, service):
        (package / "__init__.py").touch()
    (service / "installation.py").write_text("on_start = lambda: 'C:/мой: no room'", encoding="utf-8")
    (tmp_path / "install.py").write_text((PROJECT / "install.py").read_text())
    command = [sys.executable, str(tmp_path / "install.py")]
    variables = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    said = subprocess.run(command, capture_output=True, text=True, cwd="/", env=variables)
    assert (said.returncode, said.stdout) == (0, "C:/\\u043c\\u043e\\u0439: no room\n"), said.stderr


def test_install_loads_only_the_standard_library() -> None:
    code = (
        "import sys; before = set(sys.modules); import runpy; runpy.run_path('install.py'); "
        "print([m for m in set(sys.modules) - before "
        "if m.split('.')[0] not in sys.stdlib_module_names and not m.startswith('dreambooth')])"
    )
    variables = {**os.environ, "DREAMBOOTH_ENGINE_PYTHON": sys.executable}
    said = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, env=variables)
    assert said.stdout.strip() == "[]", said.stderr


def test_the_time_of_a_stale_note_does_not_matter(started: list[Any]) -> None:
    installation._write_note({"lock": environment.lock_digest(), "said": "x", "time": time.time() - 1e6})
    assert "See the Dreambooth tab" in installation.on_start() and not started


def test_a_full_disk_ends_no_set_up_by_itself_and_is_told_as_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def set_up(progress: Any, *, development: bool) -> None:
        progress("PyTorch: 1 of 2 MB")
        raise UserError("It: the disk is full; make room.")

    monkeypatch.setattr(atomic, "write_text", full)
    monkeypatch.setattr(environment, "set_up", set_up)
    with pytest.raises(UserError, match=r"^It: the disk is full; make room\.$"):
        installation.set_up(lambda text: None)
    monkeypatch.setattr(environment, "set_up", full)  # as where it writes its stamp
    with pytest.raises(UserError, match=r"the disk is full; make room, and run setup again"):
        installation.set_up(lambda text: None)
    with pytest.raises(UserError, match="the disk is full"):
        installation.begin()


def test_an_engine_that_works_is_left_as_it_is_and_the_tab_says_that_it_is_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Any] = []

    def check() -> dict[str, str]:
        seen.append(installation.state())
        return {"device": "cpu"}

    monkeypatch.setattr(environment, "is_current", lambda **_: True)
    monkeypatch.setattr(environment, "check", check)
    monkeypatch.setattr(environment, "set_up", lambda *_, **__: pytest.fail("it is set up"))
    assert installation.set_up(lambda text: None) == {"device": "cpu"}
    assert seen[0]["ready"] and seen[0]["working"] and seen[0]["said"] == environment.CHECKING
    assert not installation.state()["working"]


def test_an_engine_that_does_not_work_is_repaired_although_it_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    def check() -> None:
        raise self_check.DoesNotWork("ImportError.")

    monkeypatch.setattr(environment, "is_current", lambda **_: True)
    monkeypatch.setattr(environment, "check", check)
    monkeypatch.setattr(environment, "set_up", lambda *_, **__: {"device": "cpu"})
    assert installation.set_up(lambda text: None) == {"device": "cpu"}
