"""`import` for real: each kind of file or folder becomes the model's settings, and what is none is refused."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dreambooth.core import settings
from dreambooth.core.errors import UserError
from dreambooth.core.files import confinement
from dreambooth.core.install_paths import MINIATURE
from dreambooth.core.project import Folders, create, open_project
from dreambooth.core.settings import Settings
from dreambooth.service import import_paths, import_settings, pictures
from tests.conftest import Run, Said


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with a model, pictures with captions and pictures without."""
    create(Folders(tmp_path / "models"), "star", MINIATURE, {"lora.rank": 5, "concepts.0.class_negative_prompt": "x"})
    for folder in ("train/10_sks star", "train/notes", "reg/1_star"):
        (tmp_path / folder).mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(tmp_path / folder / "a.png")
    (tmp_path / "train/10_sks star/a.txt").write_text("a red sks star")
    return tmp_path


def take(dreambooth: Run, here: Path, file: Path, *flags: object) -> tuple[Said, Settings]:
    said = dreambooth("import", "star", file, "--data", here / "models", *flags, cwd=here.parent)
    return said, settings.parse(open_project(Folders(here / "models"), "star").settings())


def test_kohyas_dataset_file(dreambooth: Run, here: Path) -> None:
    (here / "dataset.toml").write_text("""
        [general]
        caption_extension = ".txt"  # comment
        [[datasets]]
        resolution = 64
          [[datasets.subsets]]
          image_dir = "train/10_sks star"
          class_tokens = "sks star"
          num_repeats = 3
          [[datasets.subsets]]
          is_reg = true
          image_dir = 'reg/1_star'
          class_tokens = 'star'
    """)
    said, ours = take(dreambooth, here, here / "dataset.toml", "--concepts.0.instance_token", "sks")
    assert said.code == 0, said.errors
    concept = ours.concepts[0]
    assert concept.instance_data_dir == str(here / "train" / "10_sks star")
    assert (concept.instance_prompt, concept.class_prompt, concept.class_mode) == ("[filewords]", "star", "folder")
    assert (concept.repeats, concept.instance_token, concept.class_negative_prompt) == (3, "sks", "")
    assert (ours.general.resolution, ours.lora.rank) == (64, 5)
    assert said.answer["kind"] == "kohya's dataset file"
    assert {line["fate"] for line in said.answer["report"]} == {"taken", "changed"}
    check = dreambooth("check", "star", "--data", here / "models")
    assert [picture["prompt"] for picture in check.answer["pictures"]] == ["a red sks star"]


@pytest.mark.parametrize("folder", ["train", "train/10_sks star"])
def test_kohyas_folders(dreambooth: Run, here: Path, folder: str) -> None:
    said, ours = take(dreambooth, here, here / folder)
    assert said.code == 0, said.errors
    assert [(c.repeats, c.instance_prompt, c.class_mode) for c in ours.concepts] == [(10, "[filewords]", "off")]


def test_kohyas_folders_with_their_class(dreambooth: Run, here: Path) -> None:
    (here / "train").rename(here / "img")
    _, ours = take(dreambooth, here, here)
    assert [(c.class_data_dir, c.class_prompt) for c in ours.concepts] == [(str(here / "reg" / "1_star"), "star")]


@pytest.mark.parametrize("how", ["json", "config", "as guides print it"])
def test_concepts(dreambooth: Run, here: Path, how: str) -> None:
    concept = {"instance_data_dir": "train/notes", "instance_prompt": "a sks star", "class_prompt": "a star"}
    content: Any = [concept]
    if how == "config":
        content = {"concepts_list": [concept], "num_train_epochs": 9, "use_lora": True, "lora_unet_rank": 2}
    text = json.dumps(content)
    if how == "as guides print it":
        text = f"# You can add more here\nconcepts_list = [\n    {concept},\n    # {concept}\n]\n"
    (here / "concepts_list.json").write_text(text)
    said, ours = take(dreambooth, here, here / "concepts_list.json")
    assert said.code == 0, said.errors
    assert [(c.instance_data_dir, c.instance_prompt) for c in ours.concepts] == [
        (str(here / "train/notes"), "a sks star")
    ]
    assert (ours.intervals.num_train_epochs, ours.lora.rank) == ((9, 2) if how == "config" else (100, 5))


def test_kohyas_config_file(dreambooth: Run, here: Path) -> None:
    (here / "config.toml").write_text("""
        max_train_steps = 40
        [model]
        pretrained_model_name_or_path = "gone.safetensors"
        [network]
        network_module = "networks.lora"
        network_dim = 3
        [data]
        train_data_dir = "train"
        reg_data_dir = "reg"
        resolution = "64,64"
        sample_prompts = "prompts.txt"
    """)
    (here / "prompts.txt").write_text("a sks star --s 3")
    said, ours = take(dreambooth, here, here / "config.toml")
    assert said.code == 0, said.errors
    assert said.answer["kind"] == "kohya's config file"
    assert (ours.lora.rank, ours.lora.alpha, ours.intervals.max_train_steps) == (3, 1, 20)
    assert (ours.concepts[0].instance_data_dir, ours.concepts[0].repeats) == (str(here / "train/10_sks star"), 10)
    assert (ours.concepts[0].class_mode, ours.previews.prompts, ours.previews.steps) == ("folder", "a sks star", 3)
    assert dreambooth("check", "star", "--data", here / "models").code == 0


def test_a_file_of_kohya_ss(dreambooth: Run, here: Path) -> None:
    theirs = {"LoRA_type": "Standard", "max_resolution": "64,64", "network_dim": 3, "network_alpha": 2, "epoch": "4",
              "train_data_dir": str(here / "train"), "optimizer": "Adafactor", "unet_lr": 0.0, "text_encoder_lr": 0.0,
              "learning_rate": "0.0003"}  # fmt: skip
    (here / "kohya.json").write_text(json.dumps(theirs))
    said, ours = take(dreambooth, here, here / "kohya.json")
    assert said.code == 0, said.errors
    assert said.answer["kind"] == "a file of kohya_ss"
    assert (ours.lora.rank, ours.lora.alpha, ours.optimizer.name) == (3, 2, "adafactor")
    assert (ours.intervals.num_train_epochs, ours.learning.lora_learning_rate) == (4, 3e-4)
    assert ours.concepts[0].instance_data_dir == str(here / "train/10_sks star")


def test_onetrainers_settings_with_their_concepts(dreambooth: Run, here: Path) -> None:
    concepts = [{"path": str(here / "train/10_sks star"), "text": {"prompt_source": "sample"}, "balancing": 2.0}]
    theirs = {"training_method": "LORA", "base_model_name": "x/y", "lora_rank": 3, "resolution": "64", "epochs": 4,
              "concept_file_name": "training_concepts/concepts.json", "optimizer": {"optimizer": "LION"}}  # fmt: skip
    for folder in ("training_concepts", "training_presets"):
        (here / folder).mkdir()
    (here / "training_concepts/concepts.json").write_text(json.dumps(concepts))
    (here / "training_presets/mine.json").write_text(json.dumps(theirs))
    said, ours = take(dreambooth, here, here / "training_presets/mine.json")
    assert said.code == 0, said.errors
    assert said.answer["kind"] == "OneTrainer's settings"
    assert (ours.lora.rank, ours.lora.alpha, ours.optimizer.name) == (3, 1, "lion")
    assert (ours.concepts[0].instance_prompt, ours.concepts[0].repeats) == ("[filewords]", 2)
    assert {line["fate"] for line in said.answer["report"]} == {"taken", "changed", "left out"}
    (here / "own.json").write_text(json.dumps(concepts))
    said, _ = take(dreambooth, here, here / "own.json")
    assert said.answer["kind"] == "OneTrainer's concepts"


def test_a_command_of_kohyas_scripts(dreambooth: Run, here: Path) -> None:
    (here / "train.sh").write_text(r"""#!/bin/sh
# the pictures
pictures="train"  # relative
lr=2e-4
accelerate launch --num_cpu_threads_per_process 1 "./sd-scripts/train_network.py" \
  --train_data_dir="$pictures" --resolution=64,64 \
  --unet_lr $lr --network_dim=3 --network_alpha=1 --network_args "conv_dim=4" \
  --optimizer_type=Lion --max_train_steps=12 ${extra[@]} && echo done
""")
    said, ours = take(dreambooth, here, here / "train.sh")
    assert said.code == 0, said.errors
    assert said.answer["kind"] == "a command of kohya's scripts"
    assert (ours.general.method, ours.lora.rank, ours.lora.alpha, ours.lora.layers) == ("lora", 3, 1, "convolutions")
    assert (ours.learning.lora_learning_rate, ours.optimizer.name) == (2e-4, "lion")
    assert (ours.concepts[0].instance_data_dir, ours.concepts[0].repeats) == (str(here / "train" / "10_sks star"), 10)
    left = {line["theirs"]: line["why"] for line in said.answer["report"] if line["fate"] == "left out"}
    assert left["${extra[@]}"] == "only running the file would tell what it stands for"


def test_a_command_of_diffusers_script(dreambooth: Run, here: Path) -> None:
    (here / "command.txt").write_text(
        "accelerate launch train_dreambooth_lora.py \\\n  --instance_data_dir=reg/1_star \\\n"
        '  --instance_prompt="a photo of sks star" --learning_rate=1e-4 --max_train_steps=20'
    )
    said, ours = take(dreambooth, here, here / "command.txt")
    assert said.code == 0, said.errors
    assert said.answer["kind"] == "a command of diffusers' scripts"
    assert (ours.general.method, ours.lora.rank, ours.lora.layers) == ("lora", 4, "attention")
    assert ours.concepts[0].instance_data_dir == str(here / "reg" / "1_star")
    assert (ours.learning.lora_learning_rate, ours.intervals.max_train_steps) == (1e-4, 20)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("x.json", "{", "the file is not JSON"),
        ("train.sh", "accelerate launch flux_train.py", "what can be imported is a concepts_list.json"),
        ("train.sh", "train_db.py --seed '3", "the command in it cannot be read (No closing quotation)"),
        ("x.json", "[1, 2]", "none of the files that can be imported"),
        ("x.json", "import os", "none of the files that can be imported"),
        ("x.json", "concepts = print(1)", "the file is not JSON"),
        ("x.toml", "a = = b", "the file is not TOML"),
        ("x.toml", "a = 1", "neither [[datasets]]"),
        ("y.json", None, "no such file"),
        ("reg/1_star/..", None, "holds no folders that are named after repeats"),
    ],
)
def test_what_cannot_be_imported(dreambooth: Run, here: Path, name: str, text: str | None, said: str) -> None:
    if text is None:
        (here / "reg/1_star/a.png").unlink()
        (here / "reg/1_star").rename(here / "reg/star")
        name = name.replace("1_star", "star")
    else:
        (here / name).write_text(text)
    before = (here / "models/dreambooth/star/settings.json").read_text()
    answer, _ = take(dreambooth, here, here / name)
    assert answer.code == 2
    assert said in answer.answer["problems"][0]
    assert "Traceback" not in answer.errors
    assert (here / "models/dreambooth/star/settings.json").read_text() == before


def test_a_foreign_file_has_nothing_touched_that_it_merely_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows would log in to the computer, and the whole disk would be looked through; neither becomes a setting."""
    touched: list[str] = []
    monkeypatch.setattr(pictures, "names", lambda folder: touched.append(str(folder)) or [])
    file = tmp_path / "concepts_list.json"
    for named, why in (("\\\\evil\\x", "another computer"), ("/", "a whole disk"), (str(tmp_path), "")):
        concept = {
            "instance_data_dir": named,
            "instance_prompt": "a star",
            "class_data_dir": named,
            "class_prompt": "x",
        }
        file.write_text(json.dumps([concept]))
        _, said = import_settings.read(file, lambda: Path())
        assert ("concepts.0.instance_data_dir" in said.settings) is not bool(why)
        assert ("concepts.0.class_data_dir" in said.settings) is not bool(why)
        assert sum(bool(why) and why in line.why for line in said.lines) == (2 if why else 0)
    assert set(touched) == {str(tmp_path)}


def test_captions_beside_many_pictures_are_counted_at_once(tmp_path: Path) -> None:
    for number in range(3000):
        (tmp_path / f"{number}.png").touch()
        (tmp_path / f"{number}.txt").touch()
    since = time.process_time()
    seen = import_paths.looker(tmp_path)(".")
    assert (seen.pictures, seen.captions) == (3000, {".txt": 3000})
    assert time.process_time() - since < 2


@pytest.mark.parametrize("content", ["[" * 100_000, '{"concepts_list": ' * 5_000, "x" * 20_000_001])
def test_a_file_that_is_nested_without_end_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "db_config.json"
    file.write_text(content)
    with pytest.raises(UserError, match=r"db_config\.json: .*\.$"):
        import_settings.read(file, lambda: Path())


def test_what_a_file_names_outside_of_the_folders_that_may_be_named_is_not_read(tmp_path: Path) -> None:
    """Its lines would be shown as prompts to whoever imports it."""
    (tmp_path / "own").mkdir()
    (tmp_path / "secret.txt").write_text("a secret")
    file = tmp_path / "own/kohya.json"
    file.write_text(json.dumps({"max_resolution": "64", "sample_prompts": str(tmp_path / "secret.txt")}))
    try:
        confinement.keep_to(lambda: [tmp_path / "own"])
        _, said = import_settings.read(file, lambda: Path())
    finally:
        confinement.keep_to(None)
    assert "previews.prompts" not in said.settings
    assert any("outside of the WebUI's folders" in line.why for line in said.lines if line.theirs == "sample_prompts")
    assert import_settings.read(file, lambda: Path())[1].settings["previews.prompts"] == "a secret"


def test_a_large_file_that_is_not_json_is_not_read_as_python(tmp_path: Path) -> None:
    """Python takes 400 bytes and more for each character of a list."""
    file = tmp_path / "concepts_list.json"
    file.write_text(f"[{'1, ' * 3_000_000}]")
    began = time.process_time()
    with pytest.raises(UserError, match=r"not JSON .* and too large to be read as anything else"):
        import_settings.read(file, lambda: Path())
    assert time.process_time() - began < 3
