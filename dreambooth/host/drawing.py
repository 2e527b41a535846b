"""Pictures by the WebUI's own txt2img, as its API draws them. One of the files that import the WebUI's `modules` (see
`webui.py`); what draws is imported when it is asked, as the WebUI may still be starting.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from modules import call_queue, sd_models, shared

from dreambooth.core.drawing import Drawing, Keep, Look
from dreambooth.core.errors import UserError

LOOK_SECONDS = 0.3


def samplers() -> tuple[str, ...]:
    """The samplers that the WebUI's own page offers."""
    try:
        from modules import sd_samplers
    except ImportError:
        return ()
    return tuple(sampler.name for sampler in sd_samplers.visible_samplers())


def draw(wanted: Drawing, look: Look, keep: Keep) -> None:
    """As `Host.draw` says. Others may have their turn between two batches."""
    title = _title(wanted.checkpoint)
    for start in range(0, len(wanted.seeds), wanted.batch):
        seeds = wanted.seeds[start : start + wanted.batch]
        try:
            with call_queue.queue_lock:
                if look(0.0):
                    return
                drawn = _on_its_thread(partial(_batch, wanted, title, seeds, look))
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001  (too little memory, the GPU is lent, whatever an extension does)
            said = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(f"The WebUI cannot draw this: {said[0][:300]}") from None
        if drawn is None:
            return
        for picture, seed, words in drawn:
            keep(picture, seed, words)


def _title(checkpoint: Path) -> str:
    """What the WebUI calls a checkpoint. Raises UserError for one that is not in its list."""
    for look_again in (False, True):
        if look_again:
            sd_models.list_models()
        for info in list(sd_models.checkpoints_list.values()):
            if Path(info.filename).resolve() == checkpoint.resolve():
                return str(info.title)
    raise UserError(
        f"{checkpoint}: the WebUI does not have it in its list of checkpoints; put it into its folder, or draw with "
        "Diffusers."
    )


def _on_its_thread(work: Callable[[], Any]) -> Any:
    """Forge's models belong to one thread of its own, which tells nothing of errors."""
    forge: Any = sys.modules.get("modules_forge.main_thread")
    if forge is None:
        return work()
    outcome: dict[str, Any] = {}

    def noted() -> None:
        try:
            outcome["result"] = work()
        except Exception as error:  # noqa: BLE001  (raised again below)
            outcome["error"] = error

    forge.run_and_wait_result(noted)
    if "error" in outcome:
        raise outcome["error"]
    return outcome["result"]


def _batch(wanted: Drawing, title: str, seeds: tuple[int, ...], look: Look) -> list[tuple[Any, int, str]] | None:
    """One batch: pictures with their seeds and what the WebUI says of them; None where it was stopped."""
    from modules import processing, scripts

    request = processing.StableDiffusionProcessingTxt2Img(
        sd_model=None if sys.modules.get("modules_forge.main_thread") else shared.sd_model,
        prompt=wanted.prompt,
        negative_prompt=wanted.negative_prompt,
        sampler_name=wanted.sampler,
        steps=wanted.steps,
        cfg_scale=wanted.guidance_scale,
        width=wanted.width,
        height=wanted.height,
        seed=seeds[0],
        batch_size=len(seeds),
        do_not_save_samples=True,
        do_not_save_grid=True,
        outpath_samples=shared.opts.outdir_txt2img_samples,
        outpath_grids=shared.opts.outdir_txt2img_grids,
        override_settings={"sd_model_checkpoint": title},
    )
    request.scripts = scripts.ScriptRunner()  # reForge looks for its own among them; here is none at work
    ended = threading.Event()
    with closing(request):
        shared.state.begin(job="dreambooth")
        watch = threading.Thread(target=_watch, args=(ended, wanted.steps, look), daemon=True)
        watch.start()
        try:
            drawn = processing.process_images(request)
            stopped = shared.state.interrupted or shared.state.skipped
        finally:
            ended.set()
            watch.join()
            shared.state.end()
            shared.total_tqdm.clear()  # the next picture's "Total progress" on the console begins anew
            shared.state.interrupted = shared.state.skipped = False
    if stopped:
        return None
    first = drawn.index_of_first_image  # a grid of them may come before
    return list(zip(drawn.images[first:], seeds, drawn.infotexts[first:]))


def _watch(ended: threading.Event, steps: int, look: Look) -> None:
    """Tells how far the batch is, and has the WebUI stop when that is asked."""
    while not ended.wait(LOOK_SECONDS):
        if look(min(1.0, shared.state.sampling_step / steps)):
            shared.state.interrupt()
