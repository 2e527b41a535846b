"""Deleting a result: what the run's own records say it wrote, and nothing else, by the API and the command line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from dreambooth.core import job_list, project, result_files
from dreambooth.core.errors import UserError
from dreambooth.core.files import confinement
from dreambooth.core.install_paths import MINIATURE
from dreambooth.core.job_folder import Job
from dreambooth.core.project import Folders, Project
from dreambooth.core.settings import Settings, parse
from dreambooth.host.standalone import Standalone
from dreambooth.service import api, continue_from, deleting, launcher, models, runs
from dreambooth.ui import command_line
from tests.conftest import needs_links

PLACE = "/dreambooth/models/star/outputs"


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path / "models")


@pytest.fixture
def star(folders: Folders) -> Project:
    return project.create(folders, "star", MINIATURE)


def written(folders: Folders, made: Project, name: str = "star_5", *, images: int = 5) -> tuple[Job, Path]:
    """A run that has written a LoRA with an embedding, and rests."""
    job, lora = job_list.new_run(folders, made, Settings()), folders.loras / f"{name}.safetensors"
    embedding = folders.embeddings / f"{name}.safetensors"
    for path in (lora, embedding):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(path.parent.name.encode() * 100)
    job.report("started")
    about = {"bytes": lora.stat().st_size, "embeddings": {"sks": str(embedding)}}
    job.report(
        "saved", kind="lora", path=str(lora), images=images, files=result_files.marks([lora, embedding]), **about
    )
    job.report("done")
    return job, lora


class Host(Standalone):
    refreshed = 0

    def refresh(self) -> None:
        self.refreshed += 1


def client(host: Standalone) -> TestClient:
    app = FastAPI()
    app.include_router(api.router(host))
    return TestClient(app, base_url="http://here")


def test_a_result_goes_with_what_was_written_for_it_and_is_listed_nowhere(folders: Folders, star: Project) -> None:
    host = Host(str(folders.models))
    asked = client(host)
    (_, first), (job, lora) = written(folders, star), written(folders, star, "star_9", images=9)
    beside = folders.loras / "star_9.preview.png"
    beside.touch()
    said = asked.post(f"{PLACE}/delete", json={"path": str(lora)})
    assert said.json() == {
        "path": str(lora),
        "bytes": 1400,
        "done": "star_9.safetensors is deleted, which freed 1.4 kB.",
    }
    assert host.refreshed == 1, "the WebUI's lists"
    assert not lora.exists() and not (folders.embeddings / lora.name).exists() and beside.exists()
    assert [one["path"] for one in asked.get(PLACE).json()["outputs"]] == [str(first)]
    assert runs.summary(job)["outputs"] == [] and job.status() == "done"
    assert runs.weights(star, "", base=False) == first, "what export and generate take by themselves"
    with pytest.raises(UserError, match="it is gone"):
        continue_from.learn_on(folders, star, str(lora))
    assert asked.post(f"{PLACE}/delete", json={"path": str(lora)}).status_code == 400


def test_what_was_exported_of_a_state_can_be_deleted_and_what_an_earlier_version_wrote(
    folders: Folders, star: Project
) -> None:
    job, _ = written(folders, star)
    for name, event in (("a", "exported"), ("b", "saved")):
        path = folders.loras / f"{name}.safetensors"
        path.write_bytes(b"12345")
        marks = {"files": result_files.marks([path])} if name == "a" else {}
        job.report(event, kind="lora", path=str(path), bytes=5, images=3, step=3, **marks)
        deleting.delete(folders, star, str(path))
        assert not path.exists() and len(runs.outputs(star)) == 1


def test_what_was_written_under_a_former_name_can_be_deleted_still(folders: Folders, star: Project) -> None:
    job, _ = written(folders, star)
    path = folders.loras / "star" / "star_7.safetensors"  # as with "a folder of the model's own"
    path.parent.mkdir()
    path.write_bytes(b"12345")
    job.report("saved", kind="lora", path=str(path), bytes=5, images=7, files=result_files.marks([path]))
    for name, new_name in (("star", "moon"), ("moon", "sun")):
        models.rename(folders, name, new_name)
    sun = project.open_project(folders, "sun")
    assert sun.former == ("star", "moon")
    deleting.delete(folders, sun, str(path))
    assert not path.exists()
    models.duplicate(folders, "sun", "another")
    assert project.open_project(folders, "another").former == (), "what a copy was made from has its own results"
    models.rename(folders, "sun", "star")
    assert project.open_project(folders, "star").former == ("moon", "sun")


def test_what_the_next_run_is_to_begin_with_is_not_deleted(folders: Folders, star: Project) -> None:
    _, lora = written(folders, star)
    other = project.create(folders, "moon", MINIATURE)
    continue_from.learn_on(folders, star, str(lora))
    with pytest.raises(UserError, match="the next run of star is to begin with it; empty its lora"):
        deleting.delete(folders, star, str(lora))
    assert lora.exists()
    (other.folder / "settings.json").write_text("no JSON")  # of another model, which is damaged
    project.write_settings(star, {**star.settings(), "lora.start_file": ""})
    deleting.delete(folders, star, str(lora))
    assert not lora.exists()


@pytest.mark.parametrize(
    ("name", "made"), [("star", "star-3"), ("x" * 80, "x" * 78 + "-2"), ("狗" * 60, "狗" * 59 + "-2")]
)
def test_learning_on_finds_a_name_whatever_lies_there(folders: Folders, name: str, made: str) -> None:
    opened = project.create(folders, name, MINIATURE)
    (folders.projects / "star-2").mkdir()  # left by somebody, and no model
    job, result = job_list.new_run(folders, opened, Settings()), folders.checkpoints / "learned.safetensors"
    result.parent.mkdir(parents=True)
    shutil.copyfile(MINIATURE, result)
    job.report("started")
    job.report("saved", kind="checkpoint", path=str(result), bytes=result.stat().st_size, images=1)
    job.report("done")
    assert continue_from.learn_on(folders, opened, str(result))["model"] == made
    assert project.open_project(folders, made).source == result


def changed(lora: Path) -> None:
    lora.write_bytes(lora.read_bytes()[:-1] + b"x")


def longer(lora: Path) -> None:
    (lora.parents[1] / "embeddings" / lora.name).write_bytes(b"of a person's own")


def linked(lora: Path) -> None:
    lora.symlink_to(lora.rename(lora.with_suffix(".mine")))


@pytest.mark.parametrize("do", [changed, longer, pytest.param(linked, marks=needs_links)])
def test_what_was_changed_since_is_refused(folders: Folders, star: Project, do: Callable[[Path], None]) -> None:
    _, lora = written(folders, star)
    do(lora)
    before = {path: path.read_bytes() for path in folders.models.rglob("*.safetensors")}
    with pytest.raises(UserError, match=r"was changed since it was written; delete it yourself\.$"):
        deleting.delete(folders, star, str(lora))
    assert {path: path.read_bytes() for path in folders.models.rglob("*.safetensors")} == before


def test_a_file_that_took_the_name_of_one_that_is_gone_is_its_own_runs(folders: Folders, star: Project) -> None:
    (first, lora), (second, _) = written(folders, star), written(folders, star)
    lora.write_bytes(b"another")
    second.report("saved", kind="lora", path=str(lora), bytes=7, images=5, files=result_files.marks([lora]))
    deleting.delete(folders, star, str(lora))
    assert not lora.exists() and runs.outputs(star) == []
    assert first.story().saved == second.story().saved == []


@pytest.mark.parametrize(
    "name",
    [
        "", " ", "..", ".", "star_5.safetensors", "Lora/star_5.safetensors", "../Lora/star_5.safetensors", "\x00",
        "{loras}/../Lora/star_5.safetensors", "{loras}/./star_5.safetensors", "{loras}//star_5.safetensors", "{loras}",
        "{loras}/", "{loras}/other.safetensors", "{models}/dreambooth/star/model.json", "{loras}/star_5.safetensors ",
        "file://{loras}/star_5.safetensors", "{embeddings}/star_5.safetensors", "~/star_5.safetensors", "/etc/passwd",
        "\\\\host\\share\\x.safetensors", "a" * 5000, "\ud800",
    ],
    ids=repr,
)  # fmt: skip
def test_no_other_name_deletes_anything(folders: Folders, star: Project, name: str) -> None:
    written(folders, star)
    (folders.loras / "other.safetensors").touch()
    before = sorted(folders.models.rglob("*"))
    named = name.format(loras=folders.loras, models=folders.models, embeddings=folders.embeddings)
    content = {"content": '{"path": "\\ud800"}'} if name == "\ud800" else {"json": {"path": named}}
    said = client(Host(str(folders.models))).post(f"{PLACE}/delete", **content)  # type: ignore[arg-type]
    assert said.status_code == 400 and len(said.json()["problems"]) == 1, said.text
    assert sorted(folders.models.rglob("*")) == before


def test_what_is_no_path_or_another_models_is_refused(folders: Folders, star: Project) -> None:
    _, lora = written(folders, star)
    project.create(folders, "moon", MINIATURE)
    asked = client(Host(str(folders.models)))
    for body in ({}, {"path": None}, {"path": 3}, {"path": [str(lora)]}, {"path": str(lora), "force": True}):
        assert asked.post(f"{PLACE}/delete", json=body).status_code == 400, body
    for place in ("moon", "sun", "..%2Fstar"):
        path = f"/dreambooth/models/{place}/outputs/delete"
        assert asked.post(path, json={"path": str(lora)}).status_code in (400, 404), place
    assert lora.exists()


def test_events_of_a_folder_that_came_from_elsewhere_delete_no_other_file(
    folders: Folders, star: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither as the result nor as what goes with it."""
    job, lora = written(folders, star)
    precious, own = tmp_path / "precious.safetensors", folders.loras / "own.safetensors"
    inside = folders.loras / ".." / "Lora" / "own.safetensors"
    for path in (precious, own):
        path.write_bytes(b"precious")
    odd = star.folder / "model.json"
    for path, files in ((precious, [precious]), (own, [own, precious]), (own, [own, odd]), (inside, [inside])):
        job.report("saved", kind="lora", path=str(path), bytes=8, images=1, files=result_files.marks(files))
        with pytest.raises(UserError, match="does not lie where results go"):
            deleting.delete(folders, star, str(path))
        job.report("removed", path=str(path))
    for odd_files in ([str(own)], {"\x00": "x"}, {str(own): 3}, 7):
        job.report("saved", kind="lora", path=str(own), bytes=9, images=1, files=odd_files)
        with pytest.raises(UserError, match="was changed"):
            deleting.delete(folders, star, str(own))
        job.report("removed", path=str(own))
    assert precious.exists() and own.exists() and odd.exists()
    monkeypatch.setattr(confinement, "_own", lambda: [folders.projects])
    with pytest.raises(UserError, match=confinement.FLAG):
        deleting.delete(folders, star, str(lora))
    assert lora.exists()


def test_what_something_works_with_is_refused_until_that_has_ended(folders: Folders, star: Project) -> None:
    _, lora = written(folders, star)

    def refused(match: str) -> None:
        with pytest.raises(UserError, match=match):
            deleting.delete(folders, star, str(lora))
        assert lora.exists()

    moon = project.create(folders, "moon", MINIATURE)
    sheet = {"rows": [{"weights": ""}, {"weights": str(folders.models / "x" / ".." / "Lora" / lora.name)}]}
    fields = ({"weights": str(lora)}, sheet, {"weights": str(folders.embeddings / lora.name)})
    for kind, said in zip(("generate", "generate", "export"), fields):
        errand = launcher.new_errand(folders, moon, kind, Settings(), **said)
        errand.report("started")
        with errand.hold():  # type: ignore[union-attr]
            refused(f"moon's {kind} works with it and is running; let it come to its end first")
        errand.report("done")
    begun = job_list.new_run(folders, moon, parse({"lora.start_file": str(lora)}))
    begun.request("start")
    refused("moon/1 works with it and is queued")
    begun.leave_queue()
    begun.report("started")
    begun.report("paused")
    refused("moon/1 works with it and is paused; let it come to its end first")
    begun.report("stopped")
    assert "freed" in deleting.delete(folders, star, str(lora))["done"]


def test_a_checkpoint_that_a_model_was_made_from_is_refused(folders: Folders, star: Project) -> None:
    job, result = job_list.new_run(folders, star, Settings()), folders.checkpoints / "star_5.safetensors"
    result.parent.mkdir(parents=True)
    result.write_bytes(MINIATURE.read_bytes())
    marks = result_files.marks([result])
    job.report("saved", kind="checkpoint", path=str(result), bytes=1, images=5, files=marks)
    project.create(folders, "more", result)
    with pytest.raises(UserError, match="the model more was made from it; delete that model first"):
        deleting.delete(folders, star, str(result))
    assert result.exists()


def test_on_the_command_line_by_its_name_or_its_path(
    folders: Folders, star: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    (_, first), (_, second) = written(folders, star), written(folders, star, "star_9")
    data = ["--data", str(folders.models)]
    assert command_line.main(["delete-result", "star", first.name, *data]) == 0
    assert capsys.readouterr().out == "star_5.safetensors is deleted, which freed 1.4 kB.\n"
    roundabout = folders.loras / ".." / "Lora" / second.name
    assert command_line.main(["delete-result", "star", str(roundabout), *data]) == 0
    assert not first.exists() and not second.exists()
    for named in (first.name, str(MINIATURE), "", ".."):
        capsys.readouterr()
        assert command_line.main(["delete-result", "star", named, *data]) == command_line.REFUSED
        assert capsys.readouterr().err.count("\n") == 1
    assert MINIATURE.exists()
