"""What the predecessor saved and showed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dreambooth.core.captions import FILEWORDS
from dreambooth.core.migrate.predecessor import controls
from dreambooth.core.migrate.report import Migration, number
from dreambooth.core.settings.optimization import Intervals

# By the name of diffusers' class without its ending, in small letters.
SAMPLERS = {
    "ddim": "ddim",
    "ddpm": "ddpm",
    "deismultistep": "deis",
    "dpmsolvermultistep": "dpm++",
    "dpmsolversinglestep": "dpm++_single",
    "eulerancestraldiscrete": "euler_a",
    "eulerdiscrete": "euler",
    "heundiscrete": "heun",
    "kdpm2ancestraldiscrete": "kdpm2_a",
    "kdpm2discrete": "kdpm2",
    "lmsdiscrete": "lms",
    "pndm": "pndm",
    "unipcmultistep": "unipc",
}


def take(theirs: Mapping[str, Any], into: Migration) -> None:
    _how_often(theirs, into)
    _formats(theirs, into)
    _sampler(theirs, into)
    prompt = str(theirs.get("sanity_prompt") or "").strip()
    if prompt:
        known = into.settings.get("previews.prompts", "")
        why = "the caption of each concept's first picture" if FILEWORDS in prompt else ""
        into.take("sanity_prompt", "previews.prompts", "; ".join(filter(None, [known, prompt])), why)


def _how_often(theirs: Mapping[str, Any], into: Migration) -> None:
    """There one number was for usable results and for what a run goes on from."""
    if theirs.get("save_preview_every") is not None:
        why = "" if number(theirs["save_preview_every"]) else "the first and the last are still made"
        into.take("save_preview_every", "intervals.save_preview_every", theirs["save_preview_every"], why)
    every = theirs.get("save_embedding_every")
    if every is None:
        return
    if number(every):
        into.take("save_embedding_every", "intervals.save_state_every", every)
    else:
        why = "0 would let a crash cost the whole run; this is the default"
        into.take("save_embedding_every", "intervals.save_state_every", Intervals().save_state_every, why)
    of_results = "save_lora_during" if theirs.get("use_lora") else "save_ckpt_during"
    if theirs.get(of_results):
        into.take(f"save_embedding_every, {of_results}", "intervals.save_model_every", every)
    else:
        why = "off: only the last is kept"
        into.take(f"save_embedding_every, {of_results}", "intervals.save_model_every", 0, why)


def _formats(theirs: Mapping[str, Any], into: Migration) -> None:
    if "save_safetensors" in theirs:
        why = "" if theirs["save_safetensors"] else "that extension took no other, whatever this said"
        into.take("save_safetensors", "saving.checkpoint_format", "safetensors", why)
    if theirs.get("use_ema") and "infer_ema" in theirs:
        into.take("infer_ema", "saving.weights", "average" if theirs["infer_ema"] else "raw")
    for key in ("save_ckpt_after", "save_lora_after"):
        if key.startswith("save_lora") == bool(theirs.get("use_lora")) and key in theirs:
            into.leave(key, theirs[key], controls.BY_KEY[key].reason)


def _sampler(theirs: Mapping[str, Any], into: Migration) -> None:
    name = str(theirs.get("scheduler") or "")
    ours = SAMPLERS.get(name.lower().removesuffix("scheduler"))
    if ours:
        into.take("scheduler", "previews.scheduler", ours, controls.BY_KEY["scheduler"].why)
    elif name:
        into.leave("scheduler", name, "there is no such sampler here; previews.scheduler has others")
