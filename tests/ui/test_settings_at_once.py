"""Two programs that change one model's settings at the same moment: a script by the API, and a command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from dreambooth.core import project
from dreambooth.core.install_paths import MINIATURE
from dreambooth.core.project import Folders
from dreambooth.host.standalone import Standalone
from dreambooth.service import api, settings_lock
from tests.conftest import ROOT, Run

# Each writes one setting alone, so that it must be as it was written when that program looks at it next.
_CHANGES = """
import sys
from pathlib import Path
from dreambooth.core import project
from dreambooth.core.project import Folders
from dreambooth.ui import command_line
models, lost = sys.argv[1], []
star = project.open_project(Folders(Path(models)), "star")
print("ready", flush=True)
for number in range(1, 41):
    command_line.main(["set", "star", "--intervals.num_train_epochs", str(number), "--data", models, "--json"])
    if star.settings()["intervals.num_train_epochs"] != number:
        lost.append(number)
sys.exit(bool(lost))
"""


def test_of_two_programs_that_change_settings_at_once_neither_loses_a_change(tmp_path: Path) -> None:
    folders = Folders(tmp_path / "models")
    star = project.create(folders, "star", MINIATURE)
    app = FastAPI()
    app.include_router(api.router(Standalone(str(folders.models))))
    client = TestClient(app, base_url="http://here")
    command = [sys.executable, "-c", _CHANGES, str(folders.models)]
    lost, number = list[int](), 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as other:
        assert other.stdout is not None and other.stdout.readline() == "ready\n"
        while other.poll() is None:
            number = number % 100 + 1
            answer = client.patch("/dreambooth/models/star/settings", json={"settings": {"lora.rank": number}})
            assert answer.status_code == 200, answer.text
            if star.settings()["lora.rank"] != number:
                lost.append(number)
        other.stdout.read()
    assert not lost and other.returncode == 0


def test_a_command_waits_for_another_program_and_a_copy_has_no_lock(tmp_path: Path, dreambooth: Run) -> None:
    folders = Folders(tmp_path / "models")
    star = project.create(folders, "star", MINIATURE)
    command = [sys.executable, "-m", "dreambooth", "set", "star", "--lora.rank", "4", "--data", str(folders.models)]
    with settings_lock.changing(star):
        with settings_lock.changing(star):
            pass
        waits = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=ROOT)
        with pytest.raises(subprocess.TimeoutExpired):
            waits.wait(timeout=3)
    assert waits.wait(timeout=30) == 0 and star.settings()["lora.rank"] == 4
    dreambooth("duplicate", "star", "moon", "--data", folders.models)
    assert not (folders.projects / "moon" / settings_lock.FILE).exists()
