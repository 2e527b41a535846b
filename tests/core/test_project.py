from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dreambooth.core import project
from dreambooth.core.errors import UserError
from dreambooth.core.install_paths import MINIATURE
from dreambooth.core.project import Folders
from dreambooth.core.settings import RENAMED, parse
from tests.conftest import needs_links


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "a\\b",
        ".x",
        "x.",
        " x",
        "a:b",
        "con",
        "NUL.txt",
        "com¹",
        "LPT³.x",
        "CONIN$",
        "x" * 81,
        "a\0b",
    ],
)
def test_names_that_are_no_folder_are_refused(tmp_path: Path, name: str) -> None:
    devices = ("con", "NUL.txt", "com¹", "LPT³.x", "CONIN$")
    reason = "device" if name in devices else "at most 80" if len(name) > 80 else "use up to 80 letters"
    with pytest.raises(UserError, match=f"odel's name.*{reason}"):
        project.create(Folders(tmp_path), name, MINIATURE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["anna-dog", "Анна 2", "狗", "v1.5 dog"])
def test_a_model_is_made_and_found_again(tmp_path: Path, name: str) -> None:
    made = project.create(Folders(tmp_path / "a b"), name, MINIATURE, {"lora.rank": 4})
    found = project.open_project(Folders(tmp_path / "a b"), name)
    assert found == made
    assert (found.source, found.resolution, found.settings()["lora.rank"]) == (MINIATURE, 64, 4)
    assert project.names(Folders(tmp_path / "a b")) == [name]


def test_nothing_is_copied(tmp_path: Path) -> None:
    made = project.create(Folders(tmp_path), "x", MINIATURE)
    assert sum(path.stat().st_size for path in made.folder.rglob("*")) < 20_000


def test_a_name_that_exists_is_refused_and_left_alone(tmp_path: Path) -> None:
    made = project.create(Folders(tmp_path), "x", MINIATURE)
    before = (made.folder / "model.json").read_bytes()
    with pytest.raises(UserError, match="exists already"):
        project.create(Folders(tmp_path), "x", MINIATURE)
    assert (made.folder / "model.json").read_bytes() == before


def test_bad_settings_leave_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lora\.rank"):
        project.create(Folders(tmp_path), "x", MINIATURE, {"lora.rank": 0})
    assert not list(tmp_path.iterdir())


@needs_links
def test_a_checkpoint_on_a_drive_that_does_not_answer_is_said(tmp_path: Path) -> None:
    """To ask whether it is there is an error then, as it is in a folder that may not be looked into."""
    source = tmp_path / "drive" / "m.safetensors"
    source.parent.mkdir()
    source.write_bytes(MINIATURE.read_bytes())
    made = project.create(Folders(tmp_path), "x", source)
    source.parent.rename(tmp_path / "away")
    source.parent.symlink_to("x" * 300)
    assert re.match(f"{source}: .* cannot be reached .*; look at its drive and its rights", made.problem)
    for origin in ({}, {"vae": str(source)}):
        with pytest.raises(UserError, match="cannot be reached"):
            project.create(Folders(tmp_path), "y", MINIATURE if origin else source, origin=origin)


def test_an_unknown_model_lists_the_known(tmp_path: Path) -> None:
    project.create(Folders(tmp_path), "anna", MINIATURE)
    with pytest.raises(UserError, match="there: anna"):
        project.open_project(Folders(tmp_path), "ana")


def test_settings_that_an_earlier_version_did_not_have_are_at_their_defaults(tmp_path: Path) -> None:
    made = project.create(Folders(tmp_path), "old", MINIATURE, {"concepts.0.repeats": 1, "concepts.1.repeats": 1})
    saved, now = made.folder / "settings.json", made.settings()
    assert {"concepts.0.repeats", "concepts.1.repeats", "lora.rank"} < now.keys()
    for key in now:
        saved.write_text(json.dumps({name: value for name, value in now.items() if name != key}), encoding="utf-8")
        assert made.settings() == now


def test_settings_under_their_old_names_are_still_understood(tmp_path: Path) -> None:
    made = project.create(Folders(tmp_path), "old", MINIATURE)
    saved = made.folder / "settings.json"
    values = json.loads(saved.read_text())
    for old, new in RENAMED.items():
        values[old] = values.pop(new)
    saved.write_text(json.dumps({**values, "tuning.weight_decay": 0.25}))
    assert parse(made.settings()).optimizer.weight_decay == 0.25
