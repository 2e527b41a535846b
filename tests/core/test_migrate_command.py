"""Commands that start training scripts, as guides print them and as .sh, .bat and .ps1 files hold them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dreambooth.core.migrate import command, diffusers_scripts, sd_scripts
from dreambooth.core.migrate.control import UNKNOWN
from dreambooth.core.migrate.disk import Disk
from dreambooth.core.migrate.report import Seen

DISK = Disk(look=lambda folder: Seen(pictures={"/d/anna": 8, "/d/dogs": 200}.get(folder, 0)), problem=lambda path: "")
ANNA = "--instance_data_dir=/d/anna --instance_prompt='a photo of sks dog'"
CLASS = "--with_prior_preservation --class_data_dir=/d/dogs --class_prompt='a dog' --num_class_images=200"


@pytest.mark.parametrize(
    ("text", "arguments", "unread"),
    [
        ("python train_db.py", {}, []),
        (
            "accelerate launch train_db.py \n    --seed=-1\n    --xformers --caption_extension .txt\n```\n--not these",
            {"seed": "-1", "xformers": True, "caption_extension": ".txt"},
            [],
        ),
        (
            'set MODEL=C:\\my models\\v1.ckpt\r\nset "LR=1e-4"\r\nREM train_db.py --seed 1\r\n'
            'train_db.py ^\r\n --pretrained_model_name_or_path="%MODEL%" ^\r\n '
            "--learning_rate %LR% --a %B% --c\r\npause",
            {"pretrained_model_name_or_path": "C:\\my models\\v1.ckpt", "learning_rate": "1e-4", "c": True},
            ["--a %B%"],
        ),
        (
            '$lr = "1e-4" # rate\n$rest = @("--v2")\npython "./x/sdxl_train.py" `\n  '
            "--learning_rate=$lr --vae $rest --v2 $ext_args",
            {"learning_rate": "1e-4", "v2": True},
            ["$ext_args", "--vae $rest"],
        ),
        (
            "a='b' # c\ntrain_db.py --x=$a --y \"two words\" ${all[@]} > log",
            {"x": "b", "y": "two words"},
            ["${all[@]}"],
        ),
        (
            "train_network.py --network_args a=1 b=2",
            {"network_args": ["a=1", "b=2"]},
            [],
        ),
    ],
)
def test_a_command_is_read_as_its_shell_would(text: str, arguments: dict[str, Any], unread: list[str]) -> None:
    found = command.read(text, sd_scripts.SCRIPTS)
    assert found is not None
    assert (found.arguments, found.unread) == (arguments, unread)


@pytest.mark.parametrize("text", [" " * 500_000, "`\n" * 200_000, "--a\n" * 200_000, "a=" * 200_000, "a.py " * 100_000])
def test_a_long_text_is_looked_through_once(text: str) -> None:
    assert command.read(text, sd_scripts.SCRIPTS) is None
    with pytest.raises(ValueError, match="longer than any command"):
        command.read(f"train_db.py x{text.replace(chr(10), ' ')} x", sd_scripts.SCRIPTS)


@pytest.mark.parametrize(
    "text", ["", "{}", "python flux_train_network.py --seed 1", "my_train_db.py", "train_db.python"]
)
def test_what_is_no_command(text: str) -> None:
    assert command.read(text, sd_scripts.SCRIPTS) is None


def of_diffusers(text: str, disk: Disk = DISK) -> tuple[dict[str, Any], dict[str, str]]:
    """Our settings, and the reason of each line that is not taken as it is."""
    found = command.read(text, diffusers_scripts.SCRIPTS)
    assert found is not None
    migration = diffusers_scripts.command_line(found, disk)
    return migration.settings, {line.theirs: line.why for line in migration.lines if line.fate != "taken"}


def test_diffusers_full_script() -> None:
    settings, why = of_diffusers(
        f"accelerate launch train_dreambooth.py {ANNA} {CLASS} --train_batch_size=1 --sample_batch_size=2 --seed=7 "
        "--learning_rate=2e-6 --max_train_steps=800 --num_train_epochs=3 --use_8bit_adam --mixed_precision=fp16 "
        "--train_text_encoder --gradient_checkpointing --snr_gamma=5 --offset_noise --lr_scheduler=cosine "
        "--lr_warmup_steps=80 --checkpointing_steps=200 --hub_token=secret --nonsense=3"
    )
    assert settings["general.method"] == "full"
    assert settings["concepts.0.instance_data_dir"] == "/d/anna"
    assert settings["concepts.0.num_class_images_per"] == 25
    assert (settings["batching.train_batch_size"], settings["batching.class_batch_size"]) == (1, 2)
    assert settings["learning.learning_rate"] == settings["learning.text_encoder_learning_rate"] == 2e-6
    assert (settings["learning.scheduler"], settings["learning.warmup"]) == ("cosine", 0.1)
    assert (settings["intervals.max_train_steps"], settings["intervals.save_state_every_steps"]) == (800, 200)
    assert (settings["optimizer.name"], settings["tuning.mixed_precision"]) == ("adamw_8bit", "fp16")
    assert settings["tuning.text_encoder_ratio"] == 1
    assert (settings["objective.weighting"], settings["objective.min_snr_gamma"]) == ("min_snr", 5)
    assert (settings["objective.offset_noise"], settings["pictures.crop"]) == (0.1, "random")
    assert why["num_class_images"] == "200 in all for 8 pictures"
    assert why["num_train_epochs"] == "max_train_steps goes before it there"
    assert why["adam_weight_decay"] == "not said: what the script takes for it"
    assert why["nonsense"] == UNKNOWN and "secret" not in str(why)


def test_diffusers_lora_script_with_what_it_takes_for_what_is_not_said() -> None:
    settings, why = of_diffusers(f"train_dreambooth_lora.py {ANNA} --num_train_epochs 20 --center_crop")
    assert (settings["general.method"], settings["lora.rank"], settings["lora.alpha"]) == ("lora", 4, 4)
    assert (settings["lora.layers"], settings["pictures.crop"]) == ("attention", "centre")
    assert settings["learning.lora_learning_rate"] == 5e-4
    assert settings["tuning.text_encoder_ratio"] == settings["concepts.0.num_class_images_per"] == 0
    assert (settings["intervals.num_train_epochs"], settings["intervals.max_train_steps"]) == (20, 0)
    assert settings["batching.train_batch_size"] == 4 and settings["pictures.buckets"] is False
    assert why["learning_rate"] == "not said: what the script takes for it" and "center_crop" not in why


def test_an_epoch_with_class_pictures_sees_as_many_as_there_are_of_the_class() -> None:
    settings, _ = of_diffusers(f"train_dreambooth.py {ANNA} {CLASS} --num_train_epochs 3 --train_batch_size=2")
    assert settings["intervals.max_train_steps"] == 300


def test_a_scaled_rate_and_the_rates_of_sdxls_script() -> None:
    settings, why = of_diffusers(
        f"train_dreambooth_lora_sdxl.py {ANNA} --scale_lr --train_batch_size=2 --gradient_accumulation_steps=3 "
        "--text_encoder_lr=5e-6 --train_text_encoder --use_dora"
    )
    assert settings["learning.lora_learning_rate"] == pytest.approx(6e-4)
    assert settings["learning.lora_text_encoder_learning_rate"] == 5e-6
    assert settings["lora.kind"] == "dora" and why["learning_rate"] == "scale_lr: 6 times as much"
    settings, _ = of_diffusers(f"train_dreambooth_lora_sdxl.py {ANNA} --optimizer=prodigy --learning_rate=1")
    assert (settings["optimizer.name"], settings["learning.lora_learning_rate"]) == ("prodigy", 1)


def test_a_list_of_concepts_is_read_where_it_is_there() -> None:
    listed = [{"instance_data_dir": "/d/anna", "instance_prompt": "sks dog", "class_prompt": "dog"}]
    text = 'train_dreambooth.py --concepts_list="concepts_list.json" --with_prior_preservation --num_class_images=100'
    settings, why = of_diffusers(text, replace(DISK, parsed=lambda file: listed))
    assert settings["concepts.0.instance_data_dir"] == "/d/anna" and settings["concepts.0.class_prompt"] == "dog"
    assert settings["concepts.0.num_class_images_per"] == 13 and why["concepts_list"] == "its concepts are taken"
    settings, why = of_diffusers(text)
    assert not [key for key in settings if key.startswith("concepts.")]
    assert "import that file too" in why["concepts_list"] and "in all there" in why["num_class_images"]
