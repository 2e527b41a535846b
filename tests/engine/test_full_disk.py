"""A disk that is full, read-only or gone at any moment: nothing is half written, and what was there before stays."""

# ruff: noqa: E501
from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dreambooth.core import forecast, job_list, project
from dreambooth.core.errors import UserError
from dreambooth.core.files import atomic
from dreambooth.core.install_paths import SUBJECT_PICTURES
from dreambooth.core.job_folder import Job
from dreambooth.core.models import checkpoint
from dreambooth.core.project import Folders, Project
from dreambooth.core.run_length import budget
from dreambooth.core.settings import Settings, parse
from dreambooth.engine import contact_sheet, export, generate, plan, worker
from dreambooth.engine.checkpoints import webui_yaml
from dreambooth.engine.checkpoints.diffusers_folder import write_folder
from dreambooth.engine.checkpoints.entry import Entry
from dreambooth.engine.checkpoints.write import write, write_tensors
from dreambooth.engine.data import class_pictures, png
from dreambooth.engine.data.latent_store import Store
from dreambooth.engine.drawing import sheet
from dreambooth.engine.prompts.vocabulary import clip_tokenizer
from dreambooth.engine.run import hooks, imagic, retention, setup
from dreambooth.engine.training import preview
from dreambooth.service import launcher, report, short_jobs
from dreambooth.ui import command_line
from tests.engine.runs import LORA, SHORT, folders, new_run, output, same, saved, tiny_project, told, train
from tests.engine.test_faults import finished, start
from tests.engine.test_recovery import at_batches, raise_out_of_memory

PAGE = 4096
NOISE = torch.Generator().manual_seed(0)
TENSORS = {"a": torch.rand(3000, generator=NOISE), "b": torch.rand(5000, generator=NOISE)}
PICTURE = Image.effect_noise((90, 90), 60)
MODEL: Any = SimpleNamespace(family="sdxl", prediction_type="v_prediction", unet=None)


@pytest.fixture(scope="module")
def star(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return tiny_project(tmp_path_factory.mktemp("full"))


@pytest.fixture(scope="module")
def broken(star: Project) -> Job:
    job = new_run(star)
    job.report("failed", problems=["A"], refused=True)
    return job


def a_checkpoint_with_its_yaml(place: Path, job: Job) -> None:
    beside, entries = webui_yaml.beside(place / "m.safetensors", SOURCE, MODEL), {"a": Entry.of(TENSORS["a"])}
    write(place / "m.safetensors", entries, {}, beside=beside)


def the_copy_of_a_lora(place: Path, job: Job) -> None:
    if not (job.folder / "lora.safetensors").exists():
        write_tensors(job.folder / "lora.safetensors", TENSORS, {})
    export._copy_lora(job.folder / "lora.safetensors", place / "copy.safetensors")


def latents(place: Path, job: Job) -> None:
    store = Store.__new__(Store)
    store.problem, store._beside = "", None
    store._path = lambda example: place / "latents.safetensors"  # type: ignore[method-assign]
    store.write(SimpleNamespace(), TENSORS["a"], TENSORS["b"])
    if store.problem:
        raise UserError(store.problem)


SOURCE: Any = SimpleNamespace(header=SimpleNamespace(path=Path("/nowhere/m.safetensors")))
PLAN: dict[str, Any] = {"pictures": [], "steps": 1}
WRITERS: dict[str, Callable[[Path, Job], object]] = {
    "a text over an older one": lambda place, job: atomic.write_text(place / "old.json", "new " * 9000),
    "a model": lambda place, job: write_tensors(place / "m.safetensors", TENSORS, {"about": "x"}),
    "an old checkpoint": lambda place, job: write_tensors(place / "m.ckpt", TENSORS, {}),
    "a checkpoint and its yaml": a_checkpoint_with_its_yaml,
    "a preview": lambda place, job: png.write(PICTURE, place / "1-0-0.png"),
    "a class picture": lambda place, job: class_pictures._save(
        PICTURE, class_pictures.NewPicture(place / "class-00000.png", "a star", 1), 4
    ),
    "a generated picture": lambda place, job: png.write_or_refuse(PICTURE, place / "00000-1.png", "the rest is kept"),
    "a sheet of previews": lambda place, job: preview.contact_sheet(job.folder, PREVIEWS, place / "previews.png"),
    "fitted words": lambda place, job: imagic._save(place / "words.pt", TENSORS),
    "encoded pictures": latents,
    "the copy of a LoRA": the_copy_of_a_lora,
    "a report": lambda place, job: report.write(job, place / "r.zip"),
    "a contact sheet": lambda place, job: contact_sheet.write(place / "s.html", "star", PLAN, []),
}
PREVIEWS: Any = Settings()


@pytest.mark.parametrize("what", WRITERS)
def test_a_file_is_whole_or_not_there_however_little_room_is_left(
    small_disk: Path, what: str, broken: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From no room at all, page by page, until there is enough."""
    monkeypatch.setattr(webui_yaml, "layout", lambda model: {"x": "y" * 6000})
    monkeypatch.setattr(contact_sheet, "page", lambda *_: "<p>" * 9000)
    monkeypatch.setattr(preview, "sheet", lambda *_: PICTURE)
    place, ballast = small_disk / "place", small_disk / "ballast"
    place.mkdir()
    (place / "old.json").write_text("old")
    wholes: list[dict[str, bytes]] = []
    for pages in range(80):
        ballast.unlink(missing_ok=True)
        ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free - PAGE * pages))
        try:
            WRITERS[what](place, broken)
        except (UserError, OSError) as error:
            assert "None" not in str(error)
            assert {path.name: path.read_bytes() for path in place.iterdir()} == {"old.json": b"old"}, pages
            continue
        wholes.append({path.name: path.read_bytes() for path in place.iterdir()})
        break
    assert wholes, "there was never room enough"
    assert pages > 0, "it needs no room?"
    ballast.unlink()
    for name in wholes[0]:
        if name != "old.json" or what.startswith("a text"):
            (place / name).unlink()
    WRITERS[what](place, broken)
    assert {path.name for path in place.iterdir()} == set(wholes[0]), "as with a whole disk"


def test_a_diffusers_folder_whose_tokenizer_does_not_fit_is_not_there(small_disk: Path) -> None:
    """Its library tells of a full disk by an error of no kind."""
    parts: Any = SimpleNamespace(components={"tokenizer": clip_tokenizer()}, save_config=lambda folder: None)
    with pytest.raises(UserError, match=r"folder: the folder cannot be written \(No space left on device"):
        write_folder(small_disk / "folder", parts, {})
    assert list(small_disk.iterdir()) == []


def test_what_was_left_by_writers_that_were_killed_is_swept_away_later(tmp_path: Path) -> None:
    old, new, other = (tmp_path / name for name in (".a.png.1-2.tmp", ".b.png.3-4.tmp", "c.tmp"))
    for path in (old, new, other):
        path.touch()
    os.utime(old, (0, 0))
    os.utime(other, (0, 0))
    atomic.sweep(tmp_path)
    assert sorted(tmp_path.iterdir()) == [new, other]
    atomic.sweep(tmp_path / "nowhere")


def test_a_run_lives_through_a_full_disk_and_loses_nothing(
    small_disk: Path, star: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up after the first state: states, previews and models fail, the run goes on, and ends with what
    to do; with room again it goes on from its state, to the weights of a run on a disk with room."""
    often = {"intervals.num_train_epochs": 5, "intervals.save_state_every_steps": 1, "intervals.save_model_every_steps": 3,
             "previews.count": 1, "previews.steps": 1, "intervals.save_preview_every_steps": 2, **LORA}  # fmt: skip
    whole = train(star, **often)
    subprocess.run(["mount", "-o", "remount,size=32m", str(small_disk)], check=True)
    there = project.create(project.Folders(small_disk / "models"), "star", star.source)
    job, ballast = new_run(there, **often), small_disk / "ballast"

    def fill(own: hooks.RunHooks, **fields: Any) -> None:
        if own.session.step == 2 and not ballast.exists():
            own.states.finish(own._state_written)
            with open(ballast, "wb", buffering=0) as file:
                for size in (1 << 20, PAGE, 1):
                    try:
                        while True:
                            file.write(bytes(size))
                    except OSError:
                        continue
        report_step(own, **fields)

    report_step = hooks.RunHooks.report
    monkeypatch.setattr(hooks.RunHooks, "report", fill)
    monkeypatch.setattr("dreambooth.engine.training.step_metrics.REPORT_SECONDS", 0.0)
    with pytest.raises(UserError):
        worker.run(job)
    assert ballast.stat().st_size > 1 << 20
    assert [path.name for path in job.state.iterdir() if path.name.isdigit()], "the state before is there"
    assert not saved(job)
    assert not list(small_disk.rglob("*.tmp"))
    ballast.unlink()
    monkeypatch.undo()
    assert worker.run(job) == "done"
    assert told(job, "resumed")
    assert same(output(job), output(whole))


def test_what_does_not_fit_is_named_and_leaves_no_job(small_disk: Path) -> None:
    free = shutil.disk_usage(small_disk).free
    (small_disk / "ballast").write_bytes(bytes(free - PAGE))
    with pytest.raises(OSError) as told_of:
        job_list.create(small_disk / "runs", {"kind": "train"}, json.dumps({"x": "y" * 2 * PAGE}))
    assert told_of.value.filename == str(small_disk / "runs" / "0001" / "settings.json")
    assert list((small_disk / "runs").iterdir()) == []


def test_a_result_whose_name_is_too_long_pauses_the_run_with_its_state(tmp_path: Path) -> None:
    """A model of that name can no longer be made, but there are some."""
    made = tiny_project(tmp_path)
    longest = made.folder.rename(made.folder.with_name("𠮷" * 61))
    job = new_run(project.read(longest, tmp_path), **LORA)
    assert worker.run(job) == "paused"
    assert job.states() == [1] and "cannot be written" in told(job, "warning")[0]["text"]


SPARING = {
    "intervals.num_train_epochs": 6,
    "intervals.save_model_every_steps": 2,
    "intervals.save_state_every_steps": 1,
}


def test_what_a_run_has_written_needs_no_room_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that holds the whole run and little more: it goes on from a pause and from too little memory."""
    made = tiny_project(tmp_path)
    header, chosen = checkpoint.read_header(made.source), parse({**SHORT, **SPARING})
    length = budget(chosen, 5)
    whole, each = forecast.disk_bytes(header, chosen, length), forecast.save_bytes(header, chosen)
    assert (forecast.saves(chosen, length), forecast.states(chosen, length)) == (3, 2)

    def usage(place: Path, spare: int = each // 3) -> SimpleNamespace:
        used = sum(path.stat().st_size for path in tmp_path.joinpath("models").rglob("*") if path.is_file())
        return SimpleNamespace(free=whole + spare - used)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    at_batches(monkeypatch, {5}, raise_out_of_memory)
    job, left = new_run(made, **SPARING), iter([{"pause"}])
    asked = lambda own: next(left, set()) if own.session.step == 3 else set()  # noqa: E731
    monkeypatch.setattr(hooks.RunHooks, "requests", asked)
    assert worker.run(job) == "paused"
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(place, -each))
    said = r"2 results and 1 state\), but .* are free; make room, raise intervals\.save_model_every_steps or set interv"
    with pytest.raises(UserError, match=said):
        worker.run(job)
    monkeypatch.setattr(shutil, "disk_usage", usage)
    assert worker.run(job) == "done"
    assert [event["step"] for event in told(job, "resumed")] == [3, 4], "after the pause, and with less memory"
    assert [event["images"] for event in told(job, "saved")] == [10, 20, 30]


def test_where_few_results_stay_there_is_room_needed_for_one_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the run writes in all; also when it goes on."""
    made, few = tiny_project(tmp_path), {**SPARING, "intervals.save_model_every_steps": 1, "intervals.results_kept": 1}
    header, all_of_them = checkpoint.read_header(made.source), {**few, "intervals.results_kept": 0}
    length, each = budget(parse({**SHORT, **few}), 5), forecast.save_bytes(header, parse({**SHORT, **few}))
    assert [forecast.saves(parse({**SHORT, **one}), length) for one in (few, all_of_them)] == [2, 6]
    whole = forecast.disk_bytes(header, parse({**SHORT, **few}), length) + each // 3
    most = list[int]()

    def usage(place: Path) -> SimpleNamespace:
        used = sum(path.stat().st_size for path in tmp_path.joinpath("models").rglob("*") if path.is_file())
        return SimpleNamespace(free=whole - used)

    def counted(work: Any, images: int) -> None:
        most.append(len(list(folders(made).checkpoints.iterdir())))
        tidy(work, images)

    tidy = retention.tidy
    monkeypatch.setattr(retention, "tidy", counted)
    monkeypatch.setattr(shutil, "disk_usage", usage)
    with pytest.raises(UserError, match=r"set intervals\.results_kept"):
        worker.run(new_run(made, **all_of_them))
    job = new_run(made, **few)
    with monkeypatch.context() as patch:
        patch.setattr(hooks.RunHooks, "requests", lambda own: {"pause"} if own.session.step == 3 else set())
        assert worker.run(job) == "paused"
    assert worker.run(job) == "done"
    assert max(most) == 2 and len(most) == 6


def test_each_drive_is_looked_at_before_a_run_starts(small_disk: Path, tmp_path: Path, star: Project) -> None:
    """Checkpoints that go to a small one are refused, a LoRA's go elsewhere; the plan says so too."""
    places = Folders(tmp_path / "models").moved(checkpoints=small_disk / "of WebUIs" / "checkpoints")
    made = project.create(places, "star", star.source)
    more = {"saving.keep_best": True, "concepts.0.held_out": 1, **SPARING}
    said = (
        rf"^{small_disk}/of WebUIs/checkpoints: the run has about .* to write on this drive \(4 results\), but .* are "
        r"free; make room, raise intervals\.save_model_every_steps, set intervals\.results_kept or turn "
        r"saving\.keep_best off\.$"
    )
    with pytest.raises(UserError, match=said):
        worker.run(launcher.new_run(places, made, parse({**SHORT, **more})))
    for method, problems in (("full", 1), ("lora", 0)):
        chosen = parse({**SHORT, **LORA, **more, "general.method": method})
        assert len(plan.report(launcher.new_errand(places, made, "check", chosen))["problems"]) == problems


def test_a_folder_that_may_only_be_read_is_said(
    small_disk: Path, star: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    models = small_disk / "models"
    made = project.create(project.Folders(models), "star", star.source, SHORT)
    job = new_run(made, **LORA)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    try:
        flags = ["--data", str(models)]
        for line in (["create", "other", "--source", str(star.source)], ["train", "star"], ["resume", "star/1"]):
            assert command_line.main([*line, *flags]) == command_line.REFUSED
            said = capsys.readouterr().err
            assert "ead-only" in said, line
            assert str(models) in said
            assert "Traceback" not in said
        with pytest.raises((UserError, OSError), match="ead-only"):
            job_list.new_run(project.Folders(models), made, Settings())
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert job.status() == "new"


def test_where_nothing_can_be_written_nothing_is_exported_or_drawn(small_disk: Path, star: Project) -> None:
    """A disk that became read-only after the job was asked for."""
    places, new = folders(star), small_disk / "new"
    wanted = {"weights": "", "merge": None, "onto": "", "rank": 0, "half": False}
    chosen, drawing = short_jobs.drawing(star, {"prompt": "a star", "base": True, "steps": 1})
    jobs = [(export, "export", {**wanted, "to": str(to)}) for to in (new, new / "folder", new / "x.safetensors")]
    jobs += [(generate, "generate", {**drawing, "out": str(new)})]
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    try:
        for module, kind, fields in jobs:
            with pytest.raises(UserError, match=rf"^{new}.* cannot be (made|written) \(Read-only file system\)"):
                module.run(launcher.new_errand(places, star, kind, chosen, **fields))
        with pytest.raises(UserError, match="cannot be made"):
            sheet._free_folder(new)
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)


def test_what_cannot_be_tidied_away_among_the_latents_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tiny_project(tmp_path)
    (made.latents / "@eaDir").mkdir(parents=True)  # as a NAS makes it
    old, locked = made.latents / "old.safetensors", made.latents / "locked.safetensors"
    for path in (locked, old, made.latents / "@eaDir"):
        path.exists() or path.touch()
        os.utime(path, (0, 0))
    unlink = Path.unlink

    def in_use(path: Path, missing_ok: bool = False) -> None:
        if path == locked:
            raise PermissionError(errno.EACCES, "in use", str(path))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", in_use)
    train(made, **LORA)
    assert not old.exists() and locked.exists() and (made.latents / "@eaDir").is_dir()


@pytest.mark.skipif(os.name == "nt", reason="Windows lets nobody remove what a run reads")
def test_a_checkpoint_that_is_gone_or_replaced_during_a_run_changes_nothing(tmp_path: Path, star: Project) -> None:
    longer = {"intervals.num_train_epochs": 3}
    whole = train(star, **longer)
    for what in ("gone", "replaced"):
        source = Path(shutil.copyfile(star.source, tmp_path / f"{what}.safetensors"))
        made = project.create(project.Folders(tmp_path / "models"), what, source)
        job = new_run(made, **longer)

        def then(own: hooks.RunHooks, source: Path = source, what: str = what, **fields: Any) -> None:
            source.unlink(missing_ok=True)
            if what == "replaced":
                source.write_bytes(b"another file")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(hooks.RunHooks, "report", then)
            assert worker.run(job) == "done"
        assert same(output(job), output(whole))


def test_a_checkpoint_that_is_overwritten_spoils_no_result(
    tmp_path: Path, star: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Path(shutil.copyfile(star.source, tmp_path / "m.safetensors"))
    made = project.create(project.Folders(tmp_path / "models"), "star", source)
    job = new_run(made, **{"intervals.num_train_epochs": 3})

    def overwritten(own: hooks.RunHooks, **fields: Any) -> None:
        with open(source, "r+b") as file:
            file.seek(source.stat().st_size // 2)
            file.write(struct.pack("<2f", 0.1, 0.2))

    monkeypatch.setattr(hooks.RunHooks, "report", overwritten)
    assert worker.run(job) == "paused"
    assert "was overwritten while the run works with it; put the former one back" in told(job, "warning")[-1]["text"]
    assert not saved(job)
    monkeypatch.undo()
    with pytest.raises(UserError, match="the checkpoint has changed since this run began"):
        worker.run(job)
    shutil.copyfile(star.source, source)
    assert worker.run(job) == "done"
    assert same(output(job), output(train(star, **{"intervals.num_train_epochs": 3})))


@pytest.mark.parametrize("becomes", ["gone", "damaged", "a folder"])
def test_a_picture_that_vanishes_while_it_is_wanted_is_named(
    tmp_path: Path, star: Project, becomes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(SUBJECT_PICTURES, tmp_path / "pictures"))
    picture = folder / "3.png"
    load = setup.load

    def then(*arguments: Any) -> Any:
        picture.unlink()
        if becomes == "damaged":
            picture.write_bytes(b"\x89PNG no more")
        elif becomes == "a folder":
            picture.mkdir()
        return load(*arguments)

    monkeypatch.setattr(setup, "load", then)
    job = new_run(star, **{"concepts.0.instance_data_dir": str(folder), "pictures.cache_on_disk": False})
    with pytest.raises(UserError, match=r"3\.png: this picture cannot be read") as error:
        worker.run(job)
    assert "Traceback" not in str(error.value)


def test_paths_with_spaces_and_letters_of_all_the_world(tmp_path: Path) -> None:
    place = tmp_path / "Мои модели – ü 猫 🙂 'a' #1 %20 [x]"
    place.mkdir()
    made = tiny_project(place)
    folder = Path(shutil.copytree(SUBJECT_PICTURES, place / "mes photos d'été"))
    (folder / "1.png").rename(folder / "chat é 猫 (1).png")
    job = train(
        made,
        **LORA,
        **{
            "concepts.0.instance_data_dir": str(folder),
            "concepts.0.class_prompt": "un château",
            "concepts.0.num_class_images_per": 1,
            "concepts.0.class_infer_steps": 1,
            "previews.count": 1,
            "previews.steps": 1,
            "saving.custom_model_name": "Ergebnis ö 猫",
            "intervals.save_state_every": 1,
        },
    )
    assert saved(job)[0].name.startswith("Ergebnis ö 猫")
    assert load_file(saved(job)[0])
    assert command_line.main(["runs", "--data", str(place / "models")]) == 0


@pytest.mark.thorough
def test_a_clock_that_is_set_while_a_run_goes_on_changes_nothing(
    star: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    longer = {**LORA, "intervals.num_train_epochs": 4, "intervals.save_state_every": 1}
    whole = train(star, **longer)
    now = iter(range(10**6))
    job = new_run(star, **longer)
    monkeypatch.setattr("time.time", lambda: 1e9 + (-1) ** next(now) * 86400 * 400)
    assert worker.run(job) == "done"
    assert told(job, "result")[0]["ending"] == "done"
    assert same(output(job), output(whole))
    assert all(step["seconds_left"] >= 0 for step in told(job, "step"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_kill_while_class_pictures_are_written_leaves_whole_ones(
    star: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classy = {
        "concepts.0.class_prompt": "a star",
        "concepts.0.num_class_images_per": 1,
        "concepts.0.class_infer_steps": 1,
    }
    whole = train(star, **classy, **LORA)
    drawn = {path.name: path.read_bytes() for path in star.class_pictures.rglob("*.png")}
    shutil.rmtree(star.class_pictures)
    job = new_run(star, **classy, **LORA)
    save, replace, count = class_pictures._save, os.replace, iter(range(1000))

    def killed(staged: Any, target: Any) -> None:
        if str(target).endswith(".png") and "class-" in str(target) and next(count) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(staged, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        assert not finished(start(job))
    assert save is class_pictures._save
    made = sorted(path.name for path in star.class_pictures.rglob("*.png"))
    assert made == ["class-00000.png", "class-00001.png"]
    assert worker.run(job) == "done"
    assert {path.name: path.read_bytes() for path in star.class_pictures.rglob("*.png")} == drawn
    assert same(output(job), output(whole))


def test_the_writers_are_all_of_them() -> None:
    """A new way of writing an output belongs in WRITERS: no module of the engine calls a picture's save by itself."""
    root = Path(worker.__file__).parent
    found = [
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        if ".save(path" in path.read_text(encoding="utf-8") and path.parts[-2] not in ("bench", "miniature")
    ]
    assert found == []
    assert SHORT
