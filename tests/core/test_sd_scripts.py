"""What becomes of the arguments of kohya's scripts and of what kohya_ss saves, key by key."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreambooth.core import schema
from dreambooth.core.migrate import command, sd_scripts
from dreambooth.core.migrate.control import UNKNOWN, Control
from dreambooth.core.migrate.disk import NOT_THERE, Disk
from dreambooth.core.migrate.sd_scripts.controls import BY_KEY, CONTROLS
from dreambooth.core.settings import Settings
from tests.core.migrations import fates, flat, left, look

DISK = Disk(
    look,
    lambda path: "" if path.startswith("/d") else NOT_THERE,
    lambda folder: {"/d/train": [("10_sks dog", "/d/anna")], "/d/reg": [("1_dog", "/d/dogs")]}.get(folder, []),
    lambda file: (
        "# all\nsks dog; running --n blurry --w 640 --d 7 --s 30\nsks dog\n" if file == "/d/prompts.txt" else None
    ),
)
CONFIG: dict[str, Any] = {
    "model": {"pretrained_model_name_or_path": "/m/sd15.safetensors", "network_module": "networks.lora"},
    "data": {
        "train_data_dir": "/d/train",
        "reg_data_dir": "/d/reg",
        "caption_extension": ".txt",
        "resolution": "512,768",
    },
    "network_dim": 32,
    "unet_lr": 1e-4,
    "text_encoder_lr": [5e-5, 4e-5],
    "optimizer_type": "AdamW8bit",
    "optimizer_args": ["weight_decay=0.1", "betas=0.9,0.98"],
    "max_train_epochs": 4,
    "train_batch_size": 2,
    "lr_scheduler": "cosine_with_restarts",
    "lr_warmup_steps": 40,
}
PAGE: dict[str, Any] = {
    "LoRA_type": "Standard", "max_resolution": "512,512", "network_dim": 8, "network_alpha": "4", "epoch": "3",
    "conv_dim": 16, "conv_alpha": 1, "learning_rate": "0.0001", "unet_lr": 0.0, "text_encoder_lr": 0, "lr_warmup": "10",
    "lr_scheduler": "cosine", "optimizer": "AdamW8bit", "seed": "1234", "gradient_accumulation_steps": 2.0,
    "stop_text_encoder_training": 0, "noise_offset_type": "Original", "noise_offset": "0.05",
    "multires_noise_iterations": 6, "multires_noise_discount": 0.2, "xformers": "xformers", "max_train_steps": "",
    "wandb_api_key": "secret", "additional_parameters": "",
}  # fmt: skip


def of(**theirs: Any) -> dict[str, Any]:
    return flat(sd_scripts.config_file(theirs, DISK))


def of_page(**theirs: Any) -> dict[str, Any]:
    return flat(sd_scripts.page_file({**PAGE, **theirs}, DISK))


def test_a_config_file_in_sections() -> None:
    found = sd_scripts.config_file(CONFIG, DISK)
    ours = flat(found)
    assert (ours["general.method"], ours["lora.rank"], ours["lora.alpha"]) == ("lora", 32, 1)
    assert (ours["concepts.0.instance_data_dir"], ours["concepts.0.repeats"]) == ("/d/anna", 10)
    assert (ours["concepts.0.class_mode"], ours["concepts.0.class_data_dir"]) == ("folder", "/d/dogs")
    assert (ours["general.resolution"], ours["pictures.buckets"], ours["tuning.prior_loss_weight"]) == (640, False, 1)
    assert (ours["learning.lora_learning_rate"], ours["learning.lora_text_encoder_learning_rate"]) == (1e-4, 5e-5)
    assert (ours["optimizer.name"], ours["optimizer.weight_decay"], ours["optimizer.beta2"]) == (
        "adamw_8bit",
        0.1,
        0.98,
    )
    assert (ours["intervals.num_train_epochs"], ours["learning.cycles"], ours["lora.layers"]) == (4, 1, "transformer")
    assert ours["learning.warmup"] == 0.1  # 40 of 4 epochs of 10 pictures, 10 times, with as many of the class, by twos
    assert fates(found)["network_alpha"] == ("changed", "1 there unless it is said")
    assert left(found) >= {"pretrained_model_name_or_path"}


def test_steps_are_halved_where_every_other_picture_was_of_the_class() -> None:
    assert of(network_dim=4)["intervals.max_train_steps"] == 1600
    assert of(network_dim=4, max_train_steps=300)["intervals.max_train_steps"] == 300
    both = of(network_dim=4, max_train_steps=301, train_data_dir="/d/train", reg_data_dir="/d/reg")
    assert both["intervals.max_train_steps"] == 151
    every = {"save_every_n_steps": 500, "sample_every_n_steps": 250, "stop_text_encoder_training": 1001}
    alone, both = (of(**folders, **every) for folders in ({}, {"train_data_dir": "/d/train", "reg_data_dir": "/d/reg"}))
    counted = ("intervals.save_model_every_steps", "intervals.save_preview_every_steps", "tuning.text_encoder_steps")
    assert [alone[key] for key in counted] == [500, 250, 1001]
    assert [both[key] for key in counted] == [250, 125, 501]


@pytest.mark.parametrize("name", ["007", "2024_06_01", "1e5", "infinity"])
def test_a_name_that_could_be_a_number_stays_a_name(name: str) -> None:
    found = of(token_string=name, init_word=name, output_name=name, train_data_dir="/d/train", caption_prefix=name)
    keys = ("concepts.0.instance_token", "embedding.initial_text", "saving.custom_model_name", "captions.prefix")
    assert [found[key] for key in keys] == [name] * 4


def test_an_alpha_of_0_is_the_rank() -> None:
    """LoRAModule of networks/lora.py, and LyCORIS' modules; the page hands no 0 on."""
    found = of(network_dim=32, network_alpha=0, network_args=["conv_dim=8", "conv_alpha=0"])
    assert (found["lora.alpha"], found["lora.conv_rank"], found["lora.conv_alpha"]) == (32, 8, 8)
    assert of(network_module="networks.lora", network_alpha=0)["lora.alpha"] == 4
    assert of(network_dim=32, network_alpha=0, network_args=["conv_dim=32"])["lora.conv_alpha"] == 1
    assert of_page(network_alpha=0)["lora.alpha"] == 1


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"network_train_unet_only": True}, (True, 0.0)),
        ({"network_train_text_encoder_only": True}, (False, 1.0)),
        ({"text_encoder_lr": 0}, (True, 0.0)),
        ({"unet_lr": 0}, (False, 1.0)),
        ({"cache_text_encoder_outputs": True}, (True, 0.0)),
        ({}, (True, 1.0)),
    ],
)
def test_which_parts_learn(theirs: dict[str, Any], ours: tuple[bool, float]) -> None:
    found = of(network_dim=4, **theirs)
    assert (found["tuning.train_unet"], found["tuning.text_encoder_ratio"]) == ours


def test_a_rate_that_is_not_said_is_the_general_one() -> None:
    found = of(network_dim=4, learning_rate=3e-4, unet_lr=1e-4)
    assert (found["learning.lora_learning_rate"], found["learning.lora_text_encoder_learning_rate"]) == (1e-4, 3e-4)
    assert of(network_dim=4)["learning.lora_learning_rate"] == 2e-6


def test_full_fine_tuning_and_when_its_text_encoder_stops() -> None:
    found = of(learning_rate=1e-6, stop_text_encoder_training=-1, save_model_as="ckpt", full_bf16=True)
    assert (found["general.method"], found["tuning.text_encoder_ratio"]) == ("full", 0)
    assert (found["learning.learning_rate"], found["saving.checkpoint_format"]) == (1e-6, "ckpt")
    assert found["memory.bf16_weights"] is True
    assert of(stop_text_encoder_training=200)["tuning.text_encoder_steps"] == 200
    assert of(stop_text_encoder_training=0)["tuning.text_encoder_ratio"] == 0  # train_db.py: before the first step
    assert of(train_text_encoder=False)["tuning.text_encoder_ratio"] == 0


RATES = ("text_encoder_learning_rate", "lora_text_encoder_learning_rate", "text_encoder_2_ratio")


@pytest.mark.parametrize(
    ("theirs", "rate", "ratio", "which"),
    [
        ({"learning_rate_te1": 2e-6, "learning_rate_te2": 1e-6}, 2e-6, 0.5, "both"),
        ({"learning_rate_te1": 2e-6, "learning_rate_te2": 0}, 2e-6, 1, "first"),
        ({"learning_rate_te1": 0, "learning_rate_te2": 3e-6}, 3e-6, 1, "second"),
        ({"learning_rate_te1": 2e-6, "learning_rate": 1e-6}, 2e-6, 0.5, "both"),
        ({"learning_rate_te": 4e-6}, 4e-6, 1, "both"),
        ({"network_dim": 4, "text_encoder_lr": [1e-4, 3e-5]}, 1e-4, 0.3, "both"),
        ({"network_dim": 4, "text_encoder_lr": [1e-4, 0]}, 1e-4, 1, "first"),
        ({"network_dim": 4, "text_encoder_lr": [0, 1e-4]}, 1e-4, 1, "second"),
        ({"network_dim": 4, "text_encoder_lr": [1e-4]}, 1e-4, 1, "both"),
        ({"network_dim": 4, "text_encoder_lr": 1e-4}, 1e-4, 1, "both"),
    ],
)
def test_the_rates_of_two_text_encoders(theirs: dict[str, Any], rate: float, ratio: float, which: str) -> None:
    found = of(**theirs)
    name = RATES["network_dim" in theirs]
    assert (found[f"learning.{name}"], found[f"learning.{RATES[2]}"], found["tuning.text_encoders"]) == (
        rate,
        ratio,
        which,
    )
    assert found["tuning.text_encoder_ratio"] == 1


def test_without_a_rate_neither_is_trained() -> None:
    assert of(network_dim=4, text_encoder_lr=[0, 0])["tuning.text_encoder_ratio"] == 0
    assert of(learning_rate_te1=0, learning_rate_te2=0)["tuning.text_encoder_ratio"] == 0


def test_a_page_says_the_rates_of_both_kinds_of_models() -> None:
    rates = {"learning_rate": 1e-6, "learning_rate_te": 4e-6, "learning_rate_te1": 2e-6, "learning_rate_te2": 1e-6}
    one, two = (flat(sd_scripts.page_file({**rates, "sdxl": sdxl}, DISK)) for sdxl in (False, True))
    assert [one[f"learning.{RATES[n]}"] for n in (0, 2)] == [4e-6, 1]
    assert [two[f"learning.{RATES[n]}"] for n in (0, 2)] == [2e-6, 0.5]


def test_a_word_that_learns() -> None:
    found = of(token_string="sks", init_word="dog", num_vectors_per_token=4, learning_rate=5e-3, weights="/gone.pt")
    assert (found["general.method"], found["concepts.0.instance_token"]) == ("embedding", "sks")
    assert (found["embedding.vectors"], found["embedding.initial_text"]) == (4, "dog")
    assert found["learning.embedding_learning_rate"] == 5e-3
    assert found["embedding.start_file"] == ""


def test_kinds_of_lora() -> None:
    lycoris = {"network_module": "lycoris.kohya", "network_dim": 8}
    found = of(**lycoris, network_args=["algo=lokr", "preset=attn-mlp", "factor=8", "conv_dim=4"])
    assert (found["lora.kind"], found["lora.layers"], found["lora.lokr_factor"]) == ("lokr", "transformer", 8)
    assert of(**lycoris, network_args=["algo=loha", "conv_dim=8"])["lora.layers"] == "convolutions"
    assert of(**lycoris, network_args=["algo=locon", "dora_wd=True"])["lora.kind"] == "dora"
    assert of(network_dim=8, network_args=["conv_dim=8", "loraplus_lr_ratio=4"])["learning.lora_plus_ratio"] == 4


@pytest.mark.parametrize("kind", ["LoHa", "LoKr"])
def test_the_scripts_own_loha_and_lokr_have_convolutions_only_where_they_are_asked_for(kind: str) -> None:
    """networks/loha.py and lokr.py; LyCORIS' preset stays in the page's file, and is not handed on to them."""
    page = {"LoRA_type": f"Kohya {kind}", "LyCORIS_preset": "full", "conv_dim": 0}
    assert (of_page(**page)["lora.kind"], of_page(**page)["lora.layers"]) == (kind.lower(), "transformer")
    assert of_page(**{**page, "conv_dim": 4})["lora.layers"] == "convolutions"
    assert of_page(**{**page, "LoRA_type": f"LyCORIS/{kind}"})["lora.layers"] == "convolutions"


def test_the_scripts_own_oft_has_so_many_blocks_and_not_blocks_of_a_side() -> None:
    found = sd_scripts.config_file({"network_module": "networks.oft", "network_dim": 4, "network_alpha": 1e-3}, DISK)
    ours = flat(found)
    assert (ours["lora.kind"], ours["lora.layers"], ours["lora.rank"], ours["lora.alpha"]) == (
        "oft",
        "attention",
        16,
        16,
    )
    assert left(found) >= {"network_dim", "network_alpha"}
    linear = of(network_module="networks.oft", network_args=["enable_all_linear=True"])
    assert (linear["lora.kind"], linear["lora.layers"]) == ("oft", "transformer")


ROW = ("lora.layers", "lora.rank", "lora.alpha", "lora.conv_rank", "lora.conv_alpha")


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"network_args": ["conv_dim=4", "conv_alpha=2"]}, ("convolutions", 8, 1, 4, 2)),
        ({"network_args": ["conv_dim=4"], "network_alpha": 8}, ("convolutions", 8, 8, 4, 1)),
        ({"network_args": ["conv_dim=8", "conv_alpha=1"]}, ("convolutions", 8, 1, 0, 0)),
        ({"network_args": ["conv_alpha=2"]}, ("transformer", 8, 1, 0, 0)),
        (
            {"network_module": "lycoris.kohya", "network_args": ["algo=loha", "conv_dim=4"], "network_alpha": 2},
            ("convolutions", 8, 2, 4, 0),
        ),
        (
            {"network_module": "lycoris.kohya", "network_args": ["conv_dim=4", "preset=attn-mlp"]},
            ("transformer", 8, 1, 0, 0),
        ),
    ],
)
def test_convolutions_of_a_rank_of_their_own(theirs: dict[str, Any], ours: tuple[Any, ...]) -> None:
    found = of(network_dim=8, **theirs)
    assert tuple(found[key] for key in ROW) == ours
    page = of_page(LoRA_type="Kohya LoCon")
    assert tuple(page[key] for key in ROW) == ("convolutions", 8, 4, 16, 1)


def test_max_norm() -> None:
    assert of(network_dim=8, scale_weight_norms=1.0)["lora.max_norm"] == 1
    assert of_page(scale_weight_norms="0.5")["lora.max_norm"] == 0.5
    assert of_page(scale_weight_norms=0)["lora.max_norm"] == 0
    free = {"optimizer_type": "AdamWScheduleFree", "lr_scheduler": "constant"}
    assert "scale_weight_norms" in left(
        sd_scripts.config_file({"network_dim": 8, "scale_weight_norms": 1, **free}, DISK)
    )


@pytest.mark.parametrize(
    ("theirs", "decay"),
    [
        ({}, 0.01),
        ({"optimizer_type": "PagedAdamW8bit"}, 0.01),
        ({"optimizer_type": "Lion"}, 0),
        ({"use_lion_optimizer": True}, 0),
        ({"optimizer_type": "prodigyopt.Prodigy"}, 0),
        ({"optimizer_type": "DAdaptAdam"}, 0),
        ({"optimizer_type": "Adafactor", "optimizer_args": ["weight_decay=0.05"]}, 0.05),
        ({"optimizer_type": "SGDNesterov"}, 0.01),  # which is not here, so that adamw is taken as it is
    ],
)
def test_a_weight_decay_that_is_not_said_is_the_optimizers(theirs: dict[str, Any], decay: float) -> None:
    found = of(network_dim=4, **theirs)
    assert found["optimizer.weight_decay"] == found["optimizer.text_encoder_weight_decay"] == decay
    assert of_page(optimizer="Lion")["optimizer.weight_decay"] == 0.01, "the page's file says only what it says"


def test_optimizers_that_find_the_rate() -> None:
    found = of(network_dim=4, optimizer_type="DAdaptAdam", learning_rate=1.0, optimizer_args=["d_coef=2"])
    assert (found["optimizer.name"], found["learning.lora_learning_rate"], found["optimizer.d_coef"]) == (
        "prodigy",
        1,
        2,
    )
    assert of(network_dim=4, optimizer_type="Prodigy", learning_rate=1e-4)["learning.lora_learning_rate"] == 1
    adafactor = sd_scripts.config_file({"network_dim": 4, "optimizer_type": "Adafactor", "learning_rate": 1.0}, DISK)
    assert "learning_rate" in left(adafactor) and flat(adafactor)["learning.lora_learning_rate"] == 1e-4


def test_what_is_minimised() -> None:
    found = of(network_dim=4, loss_type="smooth_l1", huber_c=0.2, min_snr_gamma=5, debiased_estimation_loss=True)
    assert (found["objective.loss"], found["objective.huber_delta"]) == ("huber", 0.2)
    assert (found["objective.weighting"], found["objective.min_snr_gamma"]) == ("min_snr", 5)
    found = of(network_dim=4, max_timestep=900, scale_v_pred_loss_like_noise_pred=True)
    assert (found["objective.timestep_max"], found["objective.weighting"]) == (899, "noise")
    assert of(huber_c=0.2)["objective.huber_delta"] == 0.1


@pytest.mark.parametrize(("iterations", "levels"), [(1, 0), (2, 1), ("6", 5)])
def test_the_finest_level_of_noise_is_none_that_is_added(iterations: Any, levels: int) -> None:
    found = sd_scripts.config_file(
        {"network_dim": 4, "multires_noise_iterations": iterations, "multires_noise_discount": 0.3}, DISK
    )
    assert flat(found)["objective.multires_noise_levels"] == levels
    assert flat(found)["objective.multires_noise_discount"] == 0.3
    [line] = [one for one in found.lines if one.theirs == "multires_noise_iterations"]
    assert line.fate == "changed"


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"save_every_n_epochs": 1, "save_last_n_epochs": 3}, 3),
        ({"save_every_n_steps": 100, "save_last_n_steps": 300}, 4),  # those of steps 300 to 600, at 600
        ({"save_every_n_steps": 100, "save_last_n_steps": 250}, 3),
        ({"save_every_n_epochs": 1, "save_last_n_epochs": 2, "save_every_n_steps": 100, "save_last_n_steps": 100}, 4),
        ({"save_every_n_epochs": 1, "save_last_n_epochs": 2, "save_every_n_steps": 100}, 0),  # all of the steps' stay
        ({"save_last_n_epochs": 2}, 0),
        ({"save_every_n_epochs": 1, "save_last_n_epochs": 0}, 0),
    ],
)
def test_how_many_of_the_newest_results_stay(theirs: dict[str, int], ours: int) -> None:
    assert of(**theirs)["intervals.results_kept"] == ours


def test_previews_from_a_file_of_prompts() -> None:
    found = sd_scripts.config_file({"sample_prompts": "/d/prompts.txt", "sample_sampler": "k_euler_a"}, DISK)
    ours = flat(found)
    assert ours["previews.prompts"] == "sks dog, running; sks dog"
    assert (ours["previews.negative_prompt"], ours["previews.width"], ours["previews.seed"]) == ("blurry", 640, 7)
    assert (ours["previews.steps"], ours["previews.scheduler"]) == (30, "euler_a")
    assert "sample_prompts" in left(sd_scripts.config_file({"sample_prompts": "/gone.txt"}, DISK))


def test_captions_are_read_as_the_scripts_would() -> None:
    """Without caption_extension they look for .caption files, of which there are none here."""
    assert of(train_data_dir="/d/train")["concepts.0.instance_prompt"] == "sks dog"
    assert of(train_data_dir="/d/train", caption_extension=".txt")["concepts.0.instance_prompt"] == "[filewords]"


def test_what_the_scripts_do_with_tags() -> None:
    ours = of(caption_tag_dropout_rate=0.1, keep_tokens_separator="|||", weighted_captions=True)
    assert (ours["captions.tag_dropout"], ours["captions.keep_tags"]) == (0.1, 0)
    assert (ours["captions.keep_marker"], ours["captions.weighted"]) == ("|||", True)
    assert of_page(weighted_captions=True, caption_dropout_every_n_epochs=3)["captions.dropout_every"] == 3


def test_what_does_not_exist_is_told() -> None:
    theirs = {"train_data_dir": "/gone", "reg_data_dir": "/d/empty", "network_weights": "/gone.safetensors"}
    said = fates(sd_scripts.config_file(theirs, DISK))
    assert said["train_data_dir"] == ("left out", "there is no such file or folder here: /gone")
    assert "holds no folders" in said["reg_data_dir"][1]
    assert said["network_weights"] == ("left out", "there is no such file or folder here: /gone.safetensors")


def test_a_file_of_kohya_ss() -> None:
    found = sd_scripts.page_file(PAGE, DISK)
    ours = flat(found)
    assert (ours["lora.rank"], ours["lora.alpha"], ours["lora.layers"]) == (8, 4, "transformer")
    assert (ours["learning.lora_learning_rate"], ours["learning.lora_text_encoder_learning_rate"]) == (1e-4, 1e-4)
    assert (ours["intervals.num_train_epochs"], ours["learning.warmup"], ours["general.seed"]) == (3, 0.1, 1234)
    assert (ours["objective.offset_noise"], ours["objective.multires_noise_levels"]) == (0.05, 0)
    assert ours["batching.gradient_accumulation_steps"] == 2
    said = fates(found)
    assert {"epoch", "lr_warmup", "max_resolution", "optimizer", "LoRA_type", "xformers"} <= said.keys()
    assert not [line for line in found.lines if line.value == "secret"]


def test_the_page_leaves_a_part_alone_whose_rate_is_0() -> None:
    assert of_page(unet_lr=1e-4)["tuning.text_encoder_ratio"] == 0
    assert of_page(text_encoder_lr="1e-4")["tuning.train_unet"] is False


def test_steps_on_the_page_go_before_its_epochs_and_after_max_train_epochs() -> None:
    found = of_page(max_train_steps=500, lr_warmup=0, lr_warmup_steps=50)
    assert (found["intervals.max_train_steps"], found["intervals.num_train_epochs"]) == (500, 100)
    assert found["learning.warmup"] == 0.1
    found = of_page(max_train_steps=500, max_train_epochs="7")
    assert (found["intervals.max_train_steps"], found["intervals.num_train_epochs"]) == (0, 7)


def test_the_page_says_when_the_text_encoder_stops_in_percent() -> None:
    theirs = {"max_resolution": "512", "stop_text_encoder_training": 30}
    assert flat(sd_scripts.page_file(theirs, DISK))["tuning.text_encoder_ratio"] == 0.3


VALUES: dict[str, Any] = {
    "resolution": "512,512", "network_module": "networks.lora", "LoRA_type": "LyCORIS/LoHa",
    "train_data_dir": "/d/train",
    "reg_data_dir": "/d/reg", "network_args": "algo=lora", "optimizer_args": "eps=1e-7", "optimizer_type": "Lion8bit",
    "lr_scheduler": "polynomial", "loss_type": "l1", "save_model_as": "diffusers", "save_precision": "bf16",
    "sample_prompts": "sks dog --l 5", "sample_sampler": "ddim", "network_weights": "/d/a.safetensors",
    "betas": "0.9,0.99",
    "weights": "/d/a.pt", "token_string": "sks", "algo": "loha", "preset": "attn-only", "log_with": "wandb",
    "lr_warmup_steps": 0.1, "learning_rate": 1e-4, "unet_lr": 1e-4, "text_encoder_lr": 1e-4, "eps": 1e-7,
    "learning_rate_te": 1e-4, "learning_rate_te1": 1e-4, "learning_rate_te2": 1e-4, "weight_decay": 0.1, "d_coef": 0.5,
    "lr_scheduler_min_lr_ratio": 0.1, "noise_offset": 0.1, "huber_c": 0.3, "prior_loss_weight": 0.5,
    "max_timestep": 900,
    "caption_extension": ".txt", "max_train_steps": 100, "noise_offset_type": "Other",
}  # fmt: skip
BESIDE: dict[str, dict[str, Any]] = {  # what a key needs to have a meaning
    "max_grad_norm": {}, "huber_scale": {"loss_type": "huber"}, "huber_c": {"loss_type": "huber"},
    "factor": {"network_module": "lycoris.kohya", "algo": "lokr"}, "d_coef": {"optimizer_type": "Prodigy"},
    "lr_scheduler_num_cycles": {"lr_scheduler": "cosine_with_restarts"},
    "lr_scheduler_power": {"lr_scheduler": "polynomial"},
    "noise_offset_random_strength": {"noise_offset": 0.1}, "adaptive_noise_scale": {"noise_offset": 0.1},
    "lr_warmup_steps": {"lr_scheduler": "cosine"}, "lr_warmup": {"lr_scheduler": "cosine"},
    "init_word": {"token_string": "sks"}, "num_vectors_per_token": {"token_string": "sks"},
    "fp8_base": {"network_dim": 4, "gradient_checkpointing": True},
}  # fmt: skip
HELD = ("network_args", "optimizer_args")  # each of their parts is told of
ON_THE_PAGE = ("epoch", "lr_warmup", "LoRA_type", "LyCORIS_preset")


@pytest.mark.parametrize("key", [key for key in BY_KEY if key not in HELD])
def test_what_is_said_of_a_key_is_what_becomes_of_it(key: str) -> None:
    """docs/coming-from.md says what the importer does; nothing is silent and nothing unknown."""
    control = BY_KEY[key]
    theirs = {**BESIDE.get(key, {}), key: VALUES.get(key, 2 if key != "max_timestep" else 900)}
    if key in ON_THE_PAGE:
        found = sd_scripts.page_file({"max_resolution": "512", **theirs}, DISK)
    else:
        found = sd_scripts.config_file({"network_dim": 4, **theirs} if key == "algo" else theirs, DISK)
    flat(found)
    about = [line for line in found.lines if key in line.theirs.replace(":", ",").split(", ")]
    assert about or key == "LyCORIS_preset", found.lines
    for line in about:
        assert line.why != UNKNOWN
        is_ours = schema.general(line.ours) in control.ours or line.ours in ("general.method", "lora.kind")
        assert line.fate == "left out" or is_ours or line.theirs.startswith(f"{key}, "), line
    assert set(control.ours) <= {leaf.key for leaf in schema.leaves(Settings)}


@pytest.mark.parametrize("key", sd_scripts.SAME)
def test_what_is_the_same(key: str) -> None:
    value: Any = {"mixed_precision": "bf16", "output_name": "anna", "gradient_checkpointing": True}.get(key, 150)
    value = 0.5 if key == "ip_noise_gamma" else value
    assert of(**{key: value})[sd_scripts.SAME[key]] == value


def test_no_key_is_told_of_twice_and_each_has_one_row() -> None:
    keys = [key for some in CONTROLS.values() for control in some for key in control.keys]
    assert len(keys) == len(set(keys))
    assert not BY_KEY.keys() & sd_scripts.SAME.keys()
    assert all(isinstance(control, Control) for control in BY_KEY.values())


ANYTHING = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.lists(st.text(max_size=4))


def test_what_is_no_number_is_left_out_with_what_it_may_be() -> None:
    (line,) = [
        one for one in sd_scripts.page_file({"max_token_length": ":"}, DISK).lines if one.theirs == "max_token_length"
    ]
    assert line.fate == "left out" and line.why == "':' is not a whole number."


@settings(max_examples=10, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(sd_scripts.KNOWN | PAGE.keys())), ANYTHING, max_size=20))
def test_no_file_ends_in_a_traceback(theirs: dict[str, Any]) -> None:
    for found in (sd_scripts.config_file(theirs, DISK), sd_scripts.page_file(theirs, DISK)):
        assert all(line.why or line.fate == "taken" for line in found.lines)
    assert not [line for line in found.lines if line.why == UNKNOWN]


@pytest.mark.parametrize("odd", [1e300, float("nan"), [1]])
def test_no_key_holds_what_ends_in_a_traceback(odd: Any) -> None:
    for key in sorted(sd_scripts.KNOWN | PAGE.keys()):
        assert sd_scripts.page_file({"max_resolution": "512", key: odd}, DISK).lines
        assert sd_scripts.config_file({"network_dim": 4, key: odd}, DISK).lines


def test_a_command_is_imported_as_the_config_file_of_the_same_arguments() -> None:
    found = command.read(
        "train_network.py --network_dim 8 --unet_lr 2e-4 --seed 7 --max_train_epochs=3 --cache_latents",
        sd_scripts.SCRIPTS,
    )
    assert found is not None
    typed = {"network_module": "networks.lora", "network_dim": 8, "unet_lr": 2e-4, "seed": 7, "max_train_epochs": 3}
    told = sd_scripts.config_file({**typed, "cache_latents": True}, DISK)
    assert sd_scripts.command_line(found, DISK).settings == told.settings
