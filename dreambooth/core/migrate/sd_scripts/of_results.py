"""What kohya's scripts save and show, and how they use the card."""

from __future__ import annotations

import re

from dreambooth.core.migrate.disk import Disk
from dreambooth.core.migrate.reading import Reading
from dreambooth.core.migrate.report import number
from dreambooth.core.migrate.sd_scripts import of_data

SAMPLERS = {
    "ddim": "ddim",
    "pndm": "pndm",
    "lms": "lms",
    "k_lms": "lms",
    "euler": "euler",
    "k_euler": "euler",
    "euler_a": "euler_a",
    "k_euler_a": "euler_a",
    "heun": "heun",
    "dpm_2": "kdpm2",
    "k_dpm_2": "kdpm2",
    "dpm_2_a": "kdpm2_a",
    "k_dpm_2_a": "kdpm2_a",
    "dpmsolver": "dpm++",
    "dpmsolver++": "dpm++",
    "dpmsingle": "dpm++_single",
}
_OPTIONS = {  # of a line of prompts, after --
    "n": "previews.negative_prompt",
    "w": "previews.width",
    "h": "previews.height",
    "d": "previews.seed",
    "l": "previews.guidance_scale",
    "s": "previews.steps",
}
_OPTION = re.compile(r"\s+--(\w+)\s+(.*?)(?=\s+--\w|$)")


def take(read: Reading, disk: Disk) -> None:
    _saving(read)
    _kept(read)
    _previews(read, disk)
    _machine(read)


def _every_steps(read: Reading, key: str, ours: str) -> None:
    steps = of_data.steps_here(read, read.number(key))
    read.take(key, ours, steps, "" if steps == read.number(key) else None)


def _saving(read: Reading) -> None:
    is_full = read.into.settings.get("general.method") == "full"
    wanted = str(read.theirs.get("save_model_as") or "")
    if (wanted in ("safetensors", "ckpt") and is_full) or wanted == "safetensors":
        read.take("save_model_as", "saving.checkpoint_format", wanted, "")
    elif wanted:
        read.leave("save_model_as")
    if read.is_given("save_every_n_steps"):
        _every_steps(read, "save_every_n_steps", "intervals.save_model_every_steps")
    if read.is_given("use_safetensors"):
        read.take("use_safetensors", "saving.checkpoint_format", "safetensors")
    precision = str(read.theirs.get("save_precision") or "")
    if precision:
        read.take("save_precision", "saving.half_model", precision != "float", "" if precision != "bf16" else None)
    logs = str(read.theirs.get("log_with") or "")
    if logs in ("tensorboard", "all") or (read.is_given("logging_dir") and not logs):
        read.take("log_with" if logs else "logging_dir", "reporting.tensorboard", True)


def _kept(read: Reading) -> None:
    """The newest results that stay. Of those of every so many epochs it is a number; of those of every so many steps
    they are the ones of the last so many steps, and one more. Where one kind stays whole, all do here."""
    units = [unit for unit in ("epochs", "steps") if read.number(f"save_every_n_{unit}") >= 1]
    last = {unit: read.number(f"save_last_n_{unit}") for unit in units}
    if not units or min(last.values()) < 1:
        return
    kept = int(last.get("epochs", 0))
    if "steps" in last:
        kept += int(last["steps"] // read.number("save_every_n_steps")) + 1
    keys, why = ", ".join(f"save_last_n_{unit}" for unit in units), read.table["save_last_n_steps"].why
    read.into.take(keys, "intervals.results_kept", kept, why if "steps" in last else "")


def _previews(read: Reading, disk: Disk) -> None:
    name = str(read.theirs.get("sample_sampler") or "")
    if name in SAMPLERS:
        read.take("sample_sampler", "previews.scheduler", SAMPLERS[name], "" if name != "dpmsolver" else "the nearest")
    elif name:
        read.leave("sample_sampler", "there is no such sampler here; previews.scheduler has others")
    if read.number("sample_every_n_steps") and not read.number("sample_every_n_epochs"):
        _every_steps(read, "sample_every_n_steps", "intervals.save_preview_every_steps")
    text = str(read.theirs.get("sample_prompts") or "").strip()
    if not text:
        return
    if "\n" not in text and re.search(r"\.(txt|toml|json)$", text):
        found = disk.text(text)
        if found is None:
            why = disk.problem(text) or "only a .txt is read"
            read.leave(
                "sample_prompts", f"{why}: {text}; write its lines into previews.prompts, with semicolons between"
            )
            return
        text = found
    _prompts(read, [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")])


def _prompts(read: Reading, lines: list[str]) -> None:
    options: dict[str, str] = {}
    prompts = []
    for line in lines:
        prompts.append(_OPTION.split(f"{line} ")[0].strip().replace(";", ","))
        for name, value in _OPTION.findall(f"{line} "):
            options.setdefault(name.lower(), value.strip())
    if prompts:
        read.take("sample_prompts", "previews.prompts", "; ".join(filter(None, prompts)))
    for name, value in options.items():
        if name in _OPTIONS and not (name == "l" and number(value) < 1):
            read.into.take(
                f"sample_prompts, --{name}", _OPTIONS[name], value, "one for all prompts; this is the first's"
            )
        else:
            read.into.leave(f"sample_prompts, --{name}", value, "there is no such choice for previews here")


def _machine(read: Reading) -> None:
    is_full = read.into.settings.get("general.method") == "full"
    if read.is_given("sdpa"):
        read.take("sdpa", "memory.attention", "sdpa")
    if read.is_given("full_bf16") and is_full:
        read.take("full_bf16", "memory.bf16_weights", True)
    if read.is_given("fused_backward_pass") and is_full:
        read.take("fused_backward_pass", "memory.step_in_backward", True)
    eighths = [key for key in ("fp8_base", "fp8_base_unet") if read.is_given(key)]
    is_small = read.into.settings.get("lora.kind") == "lora" and read.is_given("gradient_checkpointing")
    if eighths and is_small:
        read.take(eighths[0], "memory.unet_weights", "int8")
