"""Bad input: one clear sentence, exit code 2, nothing written. The commands run for real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dreambooth.core import job_list, project
from dreambooth.core.install_paths import MINIATURE, SUBJECT_PICTURES
from dreambooth.core.project import Folders
from dreambooth.core.settings import parse
from dreambooth.service import environment
from dreambooth.ui import command_line
from dreambooth.ui.describe import of_models
from tests.conftest import ROOT, Run, Said


def everything(folder: Path) -> dict[str, int]:
    """Every file with its size, but for the locks of the queue."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith((".device", ".queue"))]
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}


def refused(said: Said, *parts: str) -> None:
    assert said.code == 2, said.errors
    assert "Traceback" not in said.errors
    problems = said.answer["problems"]
    assert problems
    assert all(problem.endswith((".", "?", ".)")) for problem in problems), problems
    for part in parts:
        assert any(part in problem for problem in problems), problems


@pytest.fixture
def data(tmp_path: Path, dreambooth: Run) -> Path:
    folder = tmp_path / "models folder"
    assert dreambooth("create", "star", "--source", MINIATURE, "--data", folder).code == 0
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (80, 80), "red").save(folder / "good.png")
    return folder


def test_inspect_says_what_the_miniature_is(dreambooth: Run) -> None:
    said = dreambooth("inspect", MINIATURE)
    assert said.code == 0
    assert (said.answer["family"], said.answer["resolution"], said.answer["reason"]) == ("sd1", 64, "")


def test_settings_of_a_model_are_told_taken_back_and_go_on_from_a_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def asked(*words: object) -> dict[str, Any]:
        command_line.main([*map(str, words), "--data", str(tmp_path), "--json"])
        return dict(json.loads(capsys.readouterr().out))

    opened = project.create(Folders(tmp_path), "star", MINIATURE, {"lora.rank": 5})
    before = asked("settings", "star")["settings"]
    assert before["lora.rank"] == 5 and "properties" in asked("settings")
    assert "lora.rank  5" in of_models.settings({"name": "star", "settings": before})
    file = tmp_path / "concepts_list.json"
    file.write_text(json.dumps([{"instance_prompt": "a dog", "class_prompt": "", "instance_data_dir": str(tmp_path)}]))
    imported = asked("import", "star", file)
    assert imported["kind"] == "a concepts list" and "None" not in of_models.imported(imported)
    assert asked("settings", "star")["settings"]["concepts.0.instance_prompt"] == "a dog"
    assert asked("undo", "star")["name"] == "star" and asked("settings", "star")["settings"] == before
    assert asked("undo", "star")["problems"] == ["There is nothing to undo."]
    assert "reporting.webhook_url: it is empty" in asked("notice", "star")["problems"][0]
    assert asked("learn-on", "star")["problems"] == ["star has no result yet; train it first."]
    result = tmp_path / "star_10.safetensors"
    result.touch()
    job = job_list.new_run(Folders(tmp_path), opened, parse({}))
    job.report("saved", kind="lora", path=str(result), bytes=0, images=10)
    job.report("done")
    for named in ([], [result], [result.name]):
        assert asked("learn-on", "star", *named)["model"] == "star"
        assert asked("settings", "star")["settings"]["lora.start_file"] == str(result)
        asked("set", "star", "--lora.start_file=")
    assert "no run of star has written this file" in asked("learn-on", "star", file)["problems"][0]


@pytest.mark.parametrize("command", [["inspect"], ["create", "x", "--source"]])
def test_files_that_are_no_checkpoint(tmp_path: Path, dreambooth: Run, command: list[str]) -> None:
    whole = MINIATURE.read_bytes()
    (tmp_path / "words.safetensors").write_text("these are only words, no weights")
    (tmp_path / "short.safetensors").write_bytes(whole[: len(whole) // 2])
    before = everything(tmp_path)
    where = ["--data", tmp_path / "models"] if command[0] == "create" else []
    refused(
        dreambooth(*command, tmp_path / "words.safetensors", *where), "words.safetensors", "not a .safetensors file"
    )
    refused(dreambooth(*command, tmp_path / "short.safetensors", *where), "short.safetensors", "cut short")
    refused(dreambooth(*command, tmp_path / "gone.safetensors", *where), "gone.safetensors", "no such file")
    assert everything(tmp_path) == before


@pytest.mark.parametrize("name", ["..", "a/b", "../evil", "."])
def test_names_that_would_leave_the_folder(tmp_path: Path, dreambooth: Run, name: str) -> None:
    refused(
        dreambooth("create", name, "--source", MINIATURE, "--data", tmp_path / "models"), "cannot be a model's name"
    )
    assert not list(tmp_path.iterdir())


def test_a_name_that_exists(data: Path, dreambooth: Run) -> None:
    before = everything(data)
    refused(dreambooth("create", "star", "--source", MINIATURE, "--data", data), "exists already")
    assert everything(data) == before


def test_unknown_settings_and_values_out_of_bounds_are_told_together(
    data: Path, dreambooth: Run, pictures: Path
) -> None:
    before = everything(data)
    flags = ["--lora.rank", 0, "--lora.rnk", 4, "--intervals.num_train_epochs=-1", "--general.method", "both"]
    said = dreambooth("train", "star", "--data", data, "--concepts.0.instance_data_dir", pictures, *flags)
    refused(said, "lora.rank: 0 is below", "Did you mean lora.rank?", "num_train_epochs", "'both' is not one of")
    assert len(said.answer["problems"]) == 4
    assert everything(data) == before


def test_a_preset_is_under_the_flags_and_over_the_defaults(tmp_path: Path, dreambooth: Run) -> None:
    flags = ["--concepts.0.class_prompt", "a star", "--lora.rank", 3, "--preset", "person"]

    def create(name: str, *more: object) -> dict[str, object]:
        said = dreambooth("create", name, "--source", MINIATURE, "--data", tmp_path / "models", *flags, *more)
        assert said.code == 0, said.errors
        made: dict[str, object] = json.loads((Path(said.answer["folder"]) / "settings.json").read_text())
        return made

    made = create("one")
    assert (made["intervals.num_train_epochs"], made["concepts.0.num_class_images_per"], made["lora.rank"]) == (
        150,
        5,
        3,
    )
    assert create("two", "--intervals.num_train_epochs", 7)["intervals.num_train_epochs"] == 7
    refused(dreambooth("check", "one", "--data", tmp_path / "models", "--preset", "face"), "none called 'face'")
    refused(dreambooth("check", "one", "--data", tmp_path / "models", "--preset", ""), "none called ''")
    assert {preset["name"] for preset in dreambooth("presets").answer["presets"]} == {"person", "object", "native"}


def test_an_unknown_model(data: Path, dreambooth: Run) -> None:
    refused(dreambooth("train", "sun", "--data", data), "no model named 'sun'", "there: star")


def test_a_word_that_is_no_flag(dreambooth: Run) -> None:
    refused(dreambooth("runs", "now"), "takes no such argument")


def test_a_word_that_is_no_command(dreambooth: Run) -> None:
    for line, said in ([], "usage: "), (["trian"], "did you mean train?"), (["xyzzy"], "--help lists them"):
        done = subprocess.run([sys.executable, "-m", "dreambooth", *line], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2 and said in done.stdout + done.stderr
        assert len(done.stderr.splitlines()) <= 1


def test_a_model_is_listed_changed_copied_renamed_and_put_into_the_trash(data: Path, dreambooth: Run) -> None:
    where = ["--data", data]
    assert [one["name"] for one in dreambooth("models", *where).answer["models"]] == ["star"]
    said = dreambooth("set", "star", *where, "--lora.rank", 5, "--general.seed", 420420)
    assert said.answer["changed"] == {"lora.rank": 5}
    refused(dreambooth("set", "star", *where, "--lora.rank", 0), "lora.rank: 0 is below")
    refused(dreambooth("set", "star", *where), "set: it says nothing to change")
    assert dreambooth("duplicate", "star", "copy", *where).code == 0
    assert dreambooth("rename", "copy", "other", *where).code == 0
    refused(dreambooth("rename", "other", "star", *where), "exists already")
    refused(dreambooth("delete", "copy", *where), "no model named 'copy'")
    trash = Path(dreambooth("delete", "star", *where).answer["trash"])
    assert (trash / "settings.json").exists()
    (left,) = dreambooth("models", *where).answer["models"]
    kept = json.loads((Path(left["folder"]) / "settings.json").read_text())
    assert (left["name"], kept["lora.rank"]) == ("other", 5)


@pytest.mark.parametrize("command", ["check", "train"])
def test_pictures_that_will_not_do(data: Path, tmp_path: Path, pictures: Path, dreambooth: Run, command: str) -> None:
    def said(folder: Path | str, *more: object) -> Said:
        flags = ["--data", data, "--concepts.0.instance_data_dir", folder, "--concepts.0.instance_prompt", "a sks star"]
        return dreambooth(command, "star", *flags, *more)

    (tmp_path / "empty").mkdir()
    before = everything(data)
    refused(said(tmp_path / "empty"), "no pictures in")
    refused(said(tmp_path / "nowhere"), "there is no folder")
    refused(said(pictures, "--concepts.0.instance_prompt", " "), "instance_prompt: it is empty")
    refused(said(pictures, "--concepts.0.num_class_images_per", 2), "class_prompt: it is empty")
    (pictures / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    (pictures / "nothing.png").write_bytes(b"")
    refused(said(pictures), "broken.jpg: this picture cannot be read", "nothing.png: this picture cannot be read")
    assert everything(data) == before


def test_check_shows_the_plan(data: Path, dreambooth: Run, pictures: Path) -> None:
    flags = ["--concepts.0.instance_prompt", "[filewords] of sks", "--concepts.0.class_prompt", "a star"]
    flags += [
        "--concepts.0.num_class_images_per",
        "3",
        "--batching.train_batch_size",
        "2",
        "--general.resolution",
        "128",
    ]
    (pictures / "second.png").write_bytes((pictures / "good.png").read_bytes())
    (pictures / "second.txt").write_text("a drawing", encoding="utf-8")
    said = dreambooth("check", "star", "--data", data, "--concepts.0.instance_data_dir", pictures, *flags)
    assert said.code == 0, said.errors
    assert [p["prompt"] for p in said.answer["pictures"]] == ["good of sks", "a drawing of sks"]
    assert said.answer["pictures"][0]["crops"] == [[0, 0, 80, 80]]
    assert said.answer["pictures"][0]["warnings"] == ["smaller than 128x128; it is enlarged 1.6 times"]
    assert said.answer["pictures"][1]["warnings"][1] == "looks the same as good.png"
    first = said.answer["warnings"][0]
    assert (first["where"], first["do"]) == (
        said.answer["pictures"][0]["path"],
        "Take a larger one, or a smaller general.resolution.",
    )
    assert (said.answer["steps"], said.answer["images"], said.answer["class_pictures"][0]["missing"]) == (100, 200, 6)


def test_a_crop_is_chosen_for_a_picture_and_forgotten(
    data: Path, dreambooth: Run, pictures: Path, tmp_path: Path
) -> None:
    good, before = pictures / "good.png", everything(pictures)
    assert dreambooth("crop", good).answer["crops"] == [{"picture": str(good), "crop": None}]
    chosen = {"x": 0.25, "y": 0, "zoom": 1.2}
    said = dreambooth("crop", good, "--at", 0.25, 0, "--zoom", 1.2)
    assert said.code == 0 and said.answer["crops"] == [{"picture": str(good), "crop": chosen}]
    assert dreambooth("crop", pictures).answer["crops"] == said.answer["crops"]
    flags = ["--data", data, "--concepts.0.instance_data_dir", pictures, "--concepts.0.instance_prompt", "x"]
    (row,) = dreambooth("check", "star", *flags).answer["pictures"]
    assert (row["chosen"], row["crops"]) == (chosen, [[0, 0, 66.7, 66.7]])
    refused(dreambooth("crop", good, "--at", 2, 0, "--zoom", 0), "--at: it must be", "--zoom: it must be")
    refused(dreambooth("crop", good, "--zoom", 2), "--zoom: it goes with --at")
    refused(dreambooth("crop", good, "--at", 0, 0, "--automatic"), "--automatic: it forgets")
    refused(dreambooth("crop", pictures, "--at", 0, 0), "--at: it is for one picture")
    refused(dreambooth("crop", tmp_path / "gone.png"), "PICTURE: there is no file or folder", "gone.png")
    (tmp_path / "notes.txt").touch()
    refused(dreambooth("crop", tmp_path / "notes.txt"), "notes.txt is neither a picture nor a folder with some")
    (pictures / "good.focus").write_text("here")
    refused(dreambooth("crop", pictures), "good.focus: it holds no crop")
    assert dreambooth("crop", pictures, "--automatic").answer["crops"] == []
    assert everything(pictures) == before


def test_check_shows_what_stops_a_run_beside_what_is_well(
    data: Path, dreambooth: Run, pictures: Path, tmp_path: Path
) -> None:
    (pictures / "broken.jpg").write_bytes(b"no picture")
    (pictures / "film.mp4").write_bytes(b"no picture either")
    flags = ["--concepts.0.instance_data_dir", pictures, "--concepts.0.instance_prompt", "x"]
    said = dreambooth("check", "star", "--data", data, *flags, "--sheet", tmp_path / "sheet.html")
    refused(said, "broken.jpg: this picture cannot be read")
    assert [row["verdict"] for row in said.answer["pictures"]] == ["error", "ok"]
    assert said.answer["strangers"] == [str(pictures / "film.mp4")]
    assert "broken.jpg" in (tmp_path / "sheet.html").read_text(encoding="utf-8")
    refused(dreambooth("check", "star", "--data", data, *flags, "--sheet", tmp_path / "sheet.pdf"), "--sheet", ".html")
    refused(dreambooth("check", "star", "--data", data, *flags, "--sheet", tmp_path / "no" / "sheet.png"), "--sheet")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the names of files are always Unicode")
def test_a_name_that_is_not_unicode(data: Path, dreambooth: Run, pictures: Path) -> None:
    (pictures / "good.png").rename(os.fsdecode(bytes(pictures) + b"/caf\xe9.png"))
    flags = ["--concepts.0.instance_data_dir", pictures, "--concepts.0.instance_prompt", "[filewords]"]
    said = dreambooth("check", "star", "--data", data, *flags)
    assert said.code == 0, said.errors
    assert said.answer["pictures"][0]["path"].endswith("caf\udce9.png")


def test_relative_folders_are_meant_from_where_they_are_written(data: Path, dreambooth: Run, pictures: Path) -> None:
    prompt = ["--concepts.0.instance_prompt", "x"]
    flag = ["--concepts.0.instance_data_dir", "pictures"]
    assert dreambooth("check", "star", "--data", data, *flag, *prompt, cwd=pictures.parent).code == 0
    file = pictures.parent / "settings.json"
    file.write_text('{"concepts": [{"instance_data_dir": "pictures", "instance_prompt": "x"}]}')
    assert dreambooth("check", "star", "--data", data, "--settings", file, cwd=data).code == 0


def test_generate_and_export_refuse_what_they_cannot_do(data: Path, tmp_path: Path, dreambooth: Run) -> None:
    refused(dreambooth("export", "star", "--to", tmp_path / "x.safetensors", "--data", data), "no finished run")
    said = dreambooth("generate", "star", "--prompt", "x", "--data", data, "--steps", 0, "--width", 65, "--count", -1)
    refused(said, "--steps", "--width", "--count")
    said = dreambooth("generate", "star", "--prompt", "x", "--data", data, "--scheduler", "magic")
    refused(said, "--scheduler: 'magic' is not one of dpm++, dpm++_karras, ", ", pndm.")
    assert not list((data / "dreambooth" / "star" / "errands").glob("*")), "it was refused before an engine began"


def test_a_sheet_and_a_state_refuse_what_they_cannot_do(data: Path, tmp_path: Path, dreambooth: Run) -> None:
    sheet = ("sheet", "star", "--prompt", "x", "--data", data)
    refused(dreambooth(*sheet), "star has no result yet", "--base")
    refused(dreambooth(*sheet, "--base", "--lora-weights", 9), "--lora-weights: they must be numbers from -4 to 4")
    refused(dreambooth(*sheet, "--from-step", 3), "has no run")
    export = ("export", "star", "--to", tmp_path / "x.safetensors", "--data", data)
    for one in (sheet, ("generate", *sheet[1:]), export):
        refused(dreambooth(*one, "--base", "--run", 7), "--run: it goes with --from-step")
    refused(dreambooth(*sheet, "--from-step", 3, "--weights", "x"), "exclude each other")
    refused(dreambooth("export", "star", "--data", data), "--to: it is missing")
    refused(
        dreambooth("export", "star", "--base", "--from-step", 3, "--data", data), "--from-step", "exclude each other"
    )


@pytest.mark.parametrize("command", ["train", "class-images"])
def test_pictures_that_are_not_there_are_told_before_an_engine_is_set_up(
    command: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(environment, "ensure", lambda progress: pytest.fail("it would be set up"))
    wanted = ["--concepts.0.instance_data_dir", str(tmp_path), "--concepts.0.instance_prompt", "x", "--json"]
    assert command_line.main([command, "star", "--data", str(data), *wanted]) == 2
    assert "concepts.0.instance_data_dir: there are no pictures in" in capsys.readouterr().out


def test_runs_that_are_not_there(data: Path, dreambooth: Run) -> None:
    refused(dreambooth("pause", "star", "--data", data), "has no runs yet")
    refused(dreambooth("resume", "star/7", "--data", data), "no run 'star/7'")
    said = dreambooth("runs", "--data", data).answer
    assert (said["runs"], said["folder"]) == ([], str(data / "dreambooth"))


def test_the_demo_fills_only_a_new_folder(tmp_path: Path, dreambooth: Run) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    refused(dreambooth("demo", "--out", tmp_path), "does not exist yet")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_subject_comes_in_five_pictures() -> None:
    assert len(list(SUBJECT_PICTURES.glob("*.png"))) == 5


def test_tokens_without_words(data: Path, dreambooth: Run) -> None:
    refused(dreambooth("tokens", "star", " ", "--data", data), "PROMPT: it is empty")
    refused(dreambooth("tokens", "star", "x", "--data", data, "--candidates", -1), "--candidates")


def test_who_reads_may_have_seen_enough() -> None:
    """As `| head` does: no traceback, and no sentence either."""
    command = [sys.executable, "-m", "dreambooth", "settings"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as started:
        assert started.stdout and started.stderr
        started.stdout.close()
        assert (started.wait(60), started.stderr.read()) == (141, b"")


def test_the_readme_names_every_command() -> None:
    table = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Commands")[2].partition("\n## ")[0]
    named = {words.split()[0] for row in table.splitlines() for words in row.split(" | ")[0].split("`")[1::2]}
    known = set(command_line._parser()[1])
    assert named >= known, known - named
    assert not {word for word in named if word.isalpha() and word.islower()} - known
