"""What becomes of OneTrainer's settings, of all versions, and of its concepts, key by key."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreambooth.core import schema
from dreambooth.core.migrate import onetrainer
from dreambooth.core.migrate.control import UNKNOWN
from dreambooth.core.migrate.disk import NOT_THERE, Disk
from dreambooth.core.migrate.onetrainer.controls import BY_KEY, CONTROLS
from dreambooth.core.settings import Settings
from tests.core.migrations import fates, flat, left, look

CONCEPT: dict[str, Any] = {
    "path": "/d/anna", "name": "anna", "seed": -12, "enabled": True, "type": "STANDARD", "balancing": 10.0,
    "balancing_strategy": "REPEATS", "loss_weight": 0.5, "image_variations": 3, "include_subdirectories": True,
    "image": {"enable_random_flip": True, "enable_random_rotate": True, "random_rotate_max_angle": 5.0,
              "random_hue_max_strength": 0.2, "enable_random_contrast": True},
    "text": {"prompt_source": "sample", "enable_tag_shuffling": True, "keep_tags_count": 2, "tag_delimiter": ","},
}  # fmt: skip
SAMPLE = {"enabled": True, "prompt": "sks dog; running", "negative_prompt": "blurry", "height": 512, "width": 640,
          "seed": 7, "diffusion_steps": 30, "cfg_scale": 6.0, "noise_scheduler": "EULER_A"}  # fmt: skip
DISK = Disk(
    look,
    lambda path: "" if path.startswith("/d") else NOT_THERE,
    text=lambda file: "a photo of sks dog\n" if file == "/d/prompt.txt" else None,
    parsed=lambda file: {"/d/concepts.json": [CONCEPT], "/d/samples.json": [SAMPLE]}.get(file),
)
NEWEST: dict[str, Any] = {
    "__version": 11, "training_method": "LORA", "model_type": "STABLE_DIFFUSION_XL_10_BASE", "base_model_name": "x/y",
    "concept_file_name": "/d/concepts.json", "samples": [SAMPLE], "resolution": "1024", "epochs": 20, "batch_size": 2,
    "gradient_accumulation_steps": 2, "learning_rate": 3e-4, "learning_rate_scheduler": "COSINE_WITH_HARD_RESTARTS",
    "learning_rate_cycles": 3.0, "learning_rate_warmup_steps": 30.0, "learning_rate_min_factor": 0.1,
    "optimizer": {"optimizer": "ADAMW_8BIT", "is_paged": True, "weight_decay": 0.02, "beta1": 0.9, "eps": 1e-8,
                  "stochastic_rounding": True, "amsgrad": True, "k": None},
    "unet": {"train": True, "learning_rate": 1e-4, "weight_dtype": "NFLOAT_4", "gradient_checkpointing": True},
    "text_encoder": {"train": True, "stop_training_after": 5, "stop_training_after_unit": "EPOCH"},
    "text_encoder_2": {"train": False}, "train_dtype": "BFLOAT_16", "ema": "GPU", "ema_decay": 0.99,
    "lora_rank": 8, "layer_filter_preset": "attn-mlp", "offset_noise_weight": 0.05, "clip_grad_norm": 0.5,
    "loss_weight_fn": "MIN_SNR_GAMMA", "loss_weight_strength": 4.0, "timestep_distribution": "LOGIT_NORMAL",
    "noising_bias": 0.5, "noising_weight": 0.0, "max_noising_strength": 0.9, "masked_training": True,
    "unmasked_weight": 0.2, "save_every": 5, "save_every_unit": "EPOCH", "sample_after": 50,
    "sample_after_unit": "STEP", "backup_after": 30, "backup_after_unit": "MINUTE",
    "output_model_destination": "models/anna.safetensors", "output_dtype": "FLOAT_16",
    "secrets": {"huggingface_token": "hidden"}, "cloud": {"host": "hidden"}, "prior": {"train": True},
}  # fmt: skip


def of(**theirs: Any) -> dict[str, Any]:
    return flat(onetrainer.config({"training_method": "LORA", **theirs}, DISK))


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("models/2024_06_01.safetensors", "2024_06_01"),
        ("models/007", "007"),
        ("C:\\models\\sdxl_v1.0", "sdxl_v1.0"),
        ("anna.v2.ckpt", "anna.v2"),
    ],
)
def test_the_name_of_a_result_is_that_of_its_file(file: str, name: str) -> None:
    assert of(output_model_destination=file)["saving.custom_model_name"] == name


def test_gradient_checkpointing_is_on_unless_it_is_said_to_be_off() -> None:
    """As OneTrainer's own presets have it, of SDXL in batches of 4."""
    preset = {"model_type": "STABLE_DIFFUSION_XL_10_BASE", "batch_size": 4, "resolution": "1024"}
    found = of(**preset, unet={"weight_dtype": "NFLOAT_4"})
    assert (found["batching.gradient_checkpointing"], found["memory.unet_weights"]) == (True, "nf4")
    for off in ({"gradient_checkpointing": "OFF"}, {"gradient_checkpointing": False}):
        assert of(**off)["batching.gradient_checkpointing"] is False
    assert of(unet={"gradient_checkpointing": False})["batching.gradient_checkpointing"] is False


def test_a_saved_configuration() -> None:
    found = onetrainer.config(NEWEST, DISK)
    ours = flat(found)
    assert (ours["general.method"], ours["lora.rank"], ours["lora.alpha"]) == ("lora", 8, 1)
    assert (ours["concepts.0.instance_data_dir"], ours["concepts.0.repeats"]) == ("/d/anna", 10)
    assert (ours["concepts.0.instance_prompt"], ours["concepts.0.class_mode"]) == ("[filewords]", "off")
    assert (ours["concepts.0.loss_weight"], ours["captions.keep_tags"], ours["pictures.rotation"]) == (0.5, 2, 5)
    assert (ours["pictures.hflip"], ours["pictures.variants"], ours["pictures.crop"]) == (True, 3, "random")
    assert (ours["optimizer.name"], ours["optimizer.weight_decay"]) == ("paged_adamw_8bit", 0.02)
    assert (ours["learning.scheduler"], ours["learning.cycles"]) == ("cosine_with_restarts", 3)
    assert ours["learning.warmup"] == 0.03  # 30 of 20 epochs of 10 pictures, 10 times, by twos
    assert (ours["learning.lora_learning_rate"], ours["learning.lora_text_encoder_learning_rate"]) == (1e-4, 3e-4)
    assert (ours["tuning.text_encoder_ratio"], ours["memory.unet_weights"]) == (0.25, "nf4")
    assert ours["tuning.text_encoders"] == "first"
    assert (ours["objective.weighting"], ours["objective.min_snr_gamma"]) == ("min_snr", 4)
    assert (ours["objective.timesteps"], ours["objective.logit_mean"]) == ("logit_normal", 0.5)
    assert (ours["objective.logit_std"], ours["objective.timestep_max"]) == (1, 899)
    assert (ours["intervals.save_model_every"], ours["intervals.save_preview_every_steps"]) == (5, 25)
    assert (ours["previews.prompts"], ours["previews.scheduler"]) == ("sks dog, running", "euler_a")
    assert (ours["saving.custom_model_name"], ours["saving.half_model"]) == ("anna", True)
    assert (ours["tuning.use_ema"], ours["tuning.mixed_precision"]) == (True, "bf16")
    said = fates(found)
    assert said["lora_alpha"] == ("changed", "1 there unless it is said")
    assert {"optimizer.amsgrad", "prior.train", "backup_after", "base_model_name"} <= left(found)
    assert "concept_file_name, concept 0: image.enable_random_contrast" in left(found)
    assert "hidden" not in str(found.lines)
    assert not [line for line in found.lines if line.why == UNKNOWN]


@pytest.mark.parametrize(
    ("first", "second", "rate", "ratio", "which"),
    [
        ({"learning_rate": 1e-4}, {"learning_rate": 3e-5}, 1e-4, 0.3, "both"),
        ({}, {"learning_rate": 6e-4}, 3e-4, 2, "both"),
        ({"learning_rate": 1e-4}, {"train": False, "learning_rate": 3e-5}, 1e-4, 1, "first"),
        ({"train": False}, {"learning_rate": 3e-5}, 3e-5, 1, "second"),
        ({"learning_rate": 0.0}, {"learning_rate": 3e-5}, 3e-5, 1, "second"),
        ({}, {}, 3e-4, 1, "both"),
    ],
)
def test_the_rates_of_two_text_encoders(
    first: dict[str, Any], second: dict[str, Any], rate: float, ratio: float, which: str
) -> None:
    theirs = {"model_type": "STABLE_DIFFUSION_XL_10_BASE", "learning_rate": 3e-4}
    ours = of(**theirs, text_encoder=first, text_encoder_2=second)
    found = ours["learning.lora_text_encoder_learning_rate"], ours["learning.text_encoder_2_ratio"]
    assert (*found, ours["tuning.text_encoders"]) == (rate, ratio, which)


def test_an_old_configuration() -> None:
    theirs = {
        "training_method": "FINE_TUNE", "model_type": "STABLE_DIFFUSION_15", "optimizer": "PRODIGY", "train_unet": True,
        "train_text_encoder": True, "train_text_encoder_epochs": 25, "text_encoder_learning_rate": 1.0,
        "optimizer_d_coef": 2.0, "epochs": 50, "learning_rate": 1.0, "text_encoder_layer_skip": 1, "min_snr_gamma": 5.0,
        "gradient_checkpointing": True, "train_dtype": "FLOAT_32", "learning_rate_warmup_steps": 0.1,
    }  # fmt: skip
    ours = of(**theirs)
    assert (ours["general.method"], ours["optimizer.name"], ours["optimizer.d_coef"]) == ("full", "prodigy", 2)
    assert (ours["tuning.text_encoder_ratio"], ours["tuning.clip_skip"], ours["learning.warmup"]) == (0.5, 2, 0.1)
    assert (ours["batching.gradient_checkpointing"], ours["tuning.mixed_precision"]) == (True, "no")
    assert (ours["objective.weighting"], ours["objective.min_snr_gamma"]) == ("min_snr", 5)


def test_what_is_not_said_is_what_it_takes_for_it() -> None:
    ours = of()
    assert (ours["lora.rank"], ours["lora.alpha"], ours["learning.lora_learning_rate"]) == (16, 1, 3e-6)
    assert (ours["tuning.text_encoder_ratio"], ours["lora.layers"]) == (0.3, "convolutions")  # until epoch 30 of 100


@pytest.mark.parametrize(
    ("theirs", "kind", "rank"),
    [
        ({"peft_type": "LOHA", "lora_rank": 4}, "loha", 4),
        ({"peft_type": "OFT_2", "oft_block_size": 8}, "oft", 8),
        ({"peft_type": "LOKR", "lokr_dim": 6, "lokr_decompose_factor": -1}, "lokr", 6),
        ({"peft_type": "LORA", "lora_decompose": True, "lora_rank": 4}, "dora", 4),
    ],
)
def test_kinds_of_lora(theirs: dict[str, Any], kind: str, rank: int) -> None:
    ours = of(**theirs)
    assert (ours["lora.kind"], ours["lora.rank"]) == (kind, rank)


@pytest.mark.parametrize(
    ("said", "side"),
    [("512", 512), ("512x768", 640), ("768,1024", 768), (640, 640)],
    ids=["one", "both", "many", "int"],
)
def test_resolutions(said: Any, side: int) -> None:
    assert of(resolution=said)["general.resolution"] == side


@pytest.mark.parametrize(
    ("theirs", "key"),
    [
        ({"enabled": False}, "enabled"),
        ({"type": "VALIDATION"}, "type"),
        ({"type": "PRIOR_PREDICTION"}, "type"),
        ({"balancing_strategy": "SAMPLES", "balancing": 200}, "balancing"),
        ({"path": "/gone"}, "path"),
        ({"include_subdirectories": False}, "include_subdirectories"),
        ({"image_variations": 1}, "image.enable_random_flip"),
        ({"text": {"prompt_source": "concept", "prompt_path": "/gone.txt"}}, "text.prompt_path"),
    ],
)
def test_what_is_left_out_of_a_concept(theirs: dict[str, Any], key: str) -> None:
    assert f"concepts, concept 0: {key}" in left(onetrainer.concepts([{**CONCEPT, **theirs}], DISK))


def tags(**text: Any) -> dict[str, Any]:
    """A concept's own settings of tag dropout, at its full length and with those that say nothing."""
    said = {"tag_dropout_enable": True, "tag_dropout_mode": "RANDOM", "tag_dropout_probability": 0.25, **text}
    quiet = {"tag_dropout_special_tags_mode": "NONE", "tag_dropout_special_tags": "", "keep_tags_count": 3}
    return {"path": "/d/anna", "text": {**quiet, "tag_delimiter": ",", **said}}


def test_tags_that_are_left_out() -> None:
    white = tags(tag_dropout_special_tags_mode="WHITELIST", tag_dropout_special_tags="a, b")
    found = onetrainer.concepts([white], DISK)
    ours = found.settings
    assert (ours["captions.tag_dropout"], ours["captions.tag_dropout_except"]) == (0.25, "a, b")
    assert (ours["captions.keep_tags"], "captions.shuffle_tags" in ours) == (3, False)
    assert not [one for one in left(found) if ": text." in one]
    off = onetrainer.concepts([tags(tag_dropout_enable=False)], DISK)
    assert not [line for line in off.lines if "tag" in line.theirs]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ({"mode": "FULL"}, "mode"),
        ({"special_tags_mode": "BLACKLIST", "special_tags": "a"}, "special_tags"),
        ({"special_tags_mode": "WHITELIST", "special_tags": "/a.csv"}, "special_tags"),
    ],
)
def test_tag_dropout_that_is_not_here_is_told(text: dict[str, Any], key: str) -> None:
    found = onetrainer.concepts([tags(**{f"tag_dropout_{name}": said for name, said in text.items()})], DISK)
    assert f"concepts, concept 0: text.tag_dropout_{key}" in left(found)
    assert ("captions.tag_dropout" in found.settings) is (key != "mode")


def test_one_text_for_all_pictures_of_a_concept() -> None:
    one = {"path": "/d/tom", "text": {"prompt_source": "concept", "prompt_path": "/d/prompt.txt"}}
    assert flat(onetrainer.concepts([one], DISK))["concepts.0.instance_prompt"] == "a photo of sks dog"


def test_what_does_not_exist_is_told() -> None:
    said = fates(
        onetrainer.config({"training_method": "LORA", "concept_file_name": "/gone", "lora_model_name": "/x"}, DISK)
    )
    assert said["concept_file_name"][1].startswith(f"{NOT_THERE}: /gone")
    assert said["lora_model_name"][1] == f"{NOT_THERE}: /x"


def test_models_of_other_families_are_told() -> None:
    said = fates(onetrainer.config({"training_method": "LORA", "model_type": "FLUX_DEV_1"}, DISK))
    assert "SD 1, SD 2 and SDXL" in said["model_type"][1] and "FLUX_DEV_1" in said["model_type"][1]


OF_A_CONCEPT = {key for control in CONTROLS["Concepts"] for key in control.keys if key.startswith(("image", "text."))}
OF_A_CONCEPT |= {"path", "balancing", "balancing_strategy", "type", "enabled", "include_subdirectories", "loss_weight"}
VALUES: dict[str, Any] = {
    "training_method": "LORA", "model_type": "STABLE_DIFFUSION_15", "optimizer.optimizer": "CAME", "resolution": "512",
    "concept_file_name": "/d/concepts.json", "samples": [SAMPLE], "sample_definition_file_name": "/d/samples.json",
    "learning_rate_scheduler": "REX", "attention_mechanism": "SDP", "train_dtype": "FLOAT_16", "ema": "CPU",
    "loss_weight_fn": "P2", "timestep_distribution": "BETA", "peft_type": "LOHA", "layer_filter_preset": "attn-mlp",
    "output_model_format": "DIFFUSERS", "output_dtype": "FLOAT_32", "learning_rate": 1e-4, "unet.learning_rate": 1e-4,
    "text_encoder.learning_rate": 1e-4, "embedding_learning_rate": 1e-3, "output_model_destination": "a/b.safetensors",
    "lora_model_name": "/d/a.safetensors", "text_encoder.dropout_probability": 0.1, "dropout_probability": 0.1,
    "min_noising_strength": 0.1, "max_noising_strength": 0.9, "offset_noise_weight": 0.1, "optimizer.eps": 1e-7,
    "perturbation_noise_weight": 0.1, "learning_rate_warmup_steps": 0.1, "optimizer.weight_decay": 0.1,
    "learning_rate_min_factor": 0.1, "text_encoder.stop_training_after_unit": "NEVER", "embedding.placeholder": "sks",
    "unet.weight_dtype": "INT_8", "embedding.model_name": "/d/a.pt",
}  # fmt: skip
BESIDE: dict[str, dict[str, Any]] = {
    "unet.weight_dtype": {"unet.gradient_checkpointing": True},
    "optimizer.fused_back_pass": {"training_method": "FINE_TUNE"},
    "optimizer.is_paged": {"optimizer.optimizer": "LION_8BIT"}, "huber_delta": {"huber_strength": 1, "mse_strength": 0},
    "oft_block_size": {"peft_type": "OFT_2"}, "lokr_dim": {"peft_type": "LOKR"},
    "noising_bias": {"timestep_distribution": "LOGIT_NORMAL"},
    "noising_weight": {"timestep_distribution": "LOGIT_NORMAL"},
    "loss_weight_strength": {"loss_weight_fn": "MIN_SNR_GAMMA"},
    "learning_rate_cycles": {"learning_rate_scheduler": "COSINE_WITH_HARD_RESTARTS"},
    "rolling_backup_count": {"rolling_backup": True},
}  # fmt: skip
OLD = {"lora_layer_preset", "lora_layers", "lora_layers_regex", "save_after", "save_after_unit"}


@pytest.mark.parametrize("key", sorted(BY_KEY.keys() - OF_A_CONCEPT - OLD))
def test_what_is_said_of_a_key_is_what_becomes_of_it(key: str) -> None:
    """docs/coming-from.md says what the importer does; nothing is silent and nothing unknown."""
    control = BY_KEY[key]
    theirs = {"training_method": "LORA", **BESIDE.get(key, {}), key: VALUES.get(key, 2)}
    if key.startswith("embedding."):
        theirs["training_method"] = "EMBEDDING"
    found = onetrainer.config(theirs, DISK)
    flat(found)
    about = [line for line in found.lines if key in line.theirs.split(", ")]
    assert about, found.lines
    for line in about:
        assert line.why != UNKNOWN
        is_ours = schema.general(line.ours) in control.ours or line.ours.startswith("previews.")
        assert line.fate == "left out" or is_ours or key == "concept_file_name", line


@pytest.mark.parametrize("key", sorted(OF_A_CONCEPT))
def test_what_is_said_of_a_concepts_key_is_what_becomes_of_it(key: str) -> None:
    group, _, name = key.rpartition(".")
    values = {"path": "/d/tom", "balancing_strategy": "REPEATS", "type": "STANDARD", "balancing": 2, "enabled": False}
    values |= {"text.prompt_source": "sample", "text.prompt_path": "/d/prompt.txt", "text.tag_delimiter": ","}
    value = values.get(key, 2 if "max" in key or "count" in key or "variations" in key else True)
    value = 0.5 if "strength" in key else value
    inner: dict[str, Any] = {"enable_tag_shuffling": True} if group == "text" else {}
    if "tag_dropout" in key:
        some = {
            "special_tags": "a",
            "special_tags_mode": "WHITELIST",
            "probability": 0.5,
            "mode": "RANDOM",
            "enable": True,
        }
        inner = {f"tag_dropout_{name}": said for name, said in some.items()}
        value = inner.get(name, True)
    if group == "image":
        inner = {f"enable_{name.rpartition('_max_')[0]}": True} if "_max_" in name else {}
    one: dict[str, Any] = {"path": "/d/tom", "image_variations": 2, "balancing": 2}
    if key == "text.prompt_path":
        inner["prompt_source"] = "concept"
    one = {**one, group: {**inner, name: value}} if group else {**one, key: value}
    found = onetrainer.concepts([one], DISK)
    about = [line for line in found.lines if line.theirs.endswith(f": {key}")]
    assert about, found.lines
    for line in about:
        assert line.fate == "left out" or schema.general(line.ours) in BY_KEY[key].ours


@pytest.mark.parametrize("key", onetrainer.SAME)
def test_what_is_the_same(key: str) -> None:
    value: Any = 0.5 if key in ("ema_decay", "unmasked_weight") else 2
    value = True if key in ("aspect_ratio_bucketing", "masked_training", "tensorboard") else value
    assert of(**{key: value, "ema": "GPU"})[onetrainer.SAME[key]] == value


def test_every_row_names_settings() -> None:
    keys = [key for some in CONTROLS.values() for control in some for key in control.keys]
    assert len(keys) == len(set(keys))
    known = {leaf.key for leaf in schema.leaves(Settings)}
    assert all(set(control.ours) <= known for control in BY_KEY.values())


ANYTHING = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
NESTED = ANYTHING | st.lists(ANYTHING | st.dictionaries(st.sampled_from([*CONCEPT, "prompt"]), ANYTHING))
NESTED |= st.dictionaries(st.sampled_from(["train", "optimizer", "learning_rate", "stop_training_after"]), ANYTHING)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted({*NEWEST, *BY_KEY, "concepts"})), NESTED, max_size=20))
def test_no_file_ends_in_a_traceback(theirs: dict[str, Any]) -> None:
    assert all(line.why or line.fate == "taken" for line in onetrainer.config(theirs, DISK).lines)


@pytest.mark.parametrize("odd", [1e300, float("nan"), [{"path": {}}], {"x": [1]}])
def test_no_key_holds_what_ends_in_a_traceback(odd: Any) -> None:
    for key in sorted({*NEWEST, *BY_KEY, "concepts"}):
        assert onetrainer.config({"training_method": "LORA", key: odd}, DISK).lines
