"""The GPU lent to the engine: while it is, the WebUI's model is off it and pictures are refused with a sentence.

One of the files that import the WebUI's `modules` (see `webui.py`).
"""

from __future__ import annotations

import contextlib
import sys
import threading
import traceback
from typing import Any

import gradio as gr
from modules import call_queue, devices, progress, sd_models, shared

SETTING = "dreambooth_lend_gpu"
REFUSAL = (
    "Dreambooth has the GPU: a training or another job of its tab is running. Pause or stop it on the Dreambooth tab, "
    "or wait until it is done; a run that was paused goes on with Resume."
)


_HELD_BACK = "dreambooth_holds_back"  # a mark on what the WebUI knows of its model
# What every WebUI counts a prompt's tokens with while it is typed: in the queue, but without the GPU.
_COUNTERS = ("update_token_counter", "update_negative_prompt_token_counter")
_TASKS = ("id_task", "task_id", "job_id")  # what the page, the API and SD.Next's Control tab have what they ask for in


class GpuIsLent(gr.Error):  # type: ignore[misc]
    """The refusal. Of other errors a page shows no word unless the WebUI writes it there itself, which SD.Next does not
    on its Control tab."""

    def __str__(self) -> str:
        return REFUSAL


class _Lock:
    """A lock whose class can be changed, which a plain one's cannot. SD.Next has a plain one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def acquire(self, blocking: bool = True) -> bool:
        return self._lock.acquire(blocking)

    def release(self) -> None:
        self._lock.release()

    def locked(self) -> bool:
        return self._lock.locked()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


_PLAIN = type(threading.Lock())
_Usual: Any = _Lock if isinstance(call_queue.queue_lock, _PLAIN) else type(call_queue.queue_lock)


class _Refusing(_Usual):  # type: ignore[misc]
    """The WebUI's queue while the GPU is lent. Everything that would use the GPU takes the WebUI's one queue lock
    first, so a refusal there reaches the page and the API alike, and nothing runs out of memory. What counts tokens
    has its turn as ever: a prompt can be written meanwhile."""

    def acquire(self, blocking: bool = True) -> bool:
        if not blocking:
            return False
        asker = sys._getframe(1).f_locals  # of the WebUI's function that would have the queue
        if getattr(asker.get("func"), "__name__", "") in _COUNTERS:
            return bool(_Usual.acquire(self))
        _end_task(asker)
        forge: Any = sys.modules.get("modules_forge.main_thread")
        if forge:
            forge.last_exception = None  # Forge would show its last error in place of this one
        raise GpuIsLent(REFUSAL)

    __enter__ = acquire


def _end_task(asker: dict[str, Any]) -> None:
    """What is refused waits no more. It would be counted for ever, and its page would have Interrupt in the place of
    Generate until it gave up looking for it, after most of a minute."""
    for task in filter(progress.pending_tasks.__contains__, map(asker.get, _TASKS)):
        del progress.pending_tasks[task]
        progress.finish_task(task)


def prepare() -> None:
    """The WebUI has started, and no picture has been asked for yet."""
    plain = call_queue.queue_lock
    if isinstance(plain, _PLAIN):  # SD.Next's, which its API has too
        lock, api = _Lock(), getattr(shared, "api", None)
        for holder in (call_queue, api, *(vars(api).values() if api else ())):
            if getattr(holder, "queue_lock", None) is plain:
                holder.queue_lock = lock


def is_on() -> bool:
    """Whether the WebUI uses a GPU and is to give it up."""
    return getattr(devices.device, "type", "cpu") != "cpu" and bool(shared.opts.data.get(SETTING, True))


def lend() -> None:
    """As `Host.lend_gpu` says."""
    if not is_on():
        take_back()  # it was lent when the setting was changed
        return
    queue = call_queue.queue_lock
    if isinstance(queue, _Refusing) and not _has_come_back():
        return
    # What is asked from now on is refused; what was asked before is finished first.
    queue.__class__ = _Refusing
    _Usual.acquire(queue)
    try:
        hold_back()
        _unload()
    except Exception:  # noqa: BLE001  (what stays on the GPU leaves less room, no more)
        traceback.print_exc()
    finally:
        queue.release()


def take_back() -> None:
    """As `Host.take_gpu_back` says."""
    data, queue = sd_models.model_data, call_queue.queue_lock
    if vars(data).pop(_HELD_BACK, False) and data.sd_model is None:
        data.was_loaded_at_least_once = False
    if not isinstance(queue, _Refusing):
        return
    # Pictures are drawn again only when the model is where they expect it; else the queue's next look tries again.
    _Usual.acquire(queue)
    try:
        if (model := sd_models.model_data.sd_model) and _keeps_models():
            sd_models.send_model_to_device(model)
        queue.__class__ = _Usual
    finally:
        queue.release()


def hold_back() -> None:
    """Where no model is loaded yet, whoever asks for one gets none. A1111's page asks when it is opened, and would load
    it beside the engine, without the queue."""
    data = sd_models.model_data
    if getattr(data, "was_loaded_at_least_once", True) is False and data.sd_model is None:
        data.was_loaded_at_least_once = True
        setattr(data, _HELD_BACK, True)


def _has_come_back() -> bool:
    """Whether a model is on the GPU again, as SD.Next and reForge load one at their start, without the queue."""
    if manager := _memory_manager():
        loaded = list(getattr(manager, "current_loaded_models", ()))
        # On a small card they have the text encoder work on the CPU, where it stays whatever is unloaded.
        return any(getattr(getattr(one, "device", None), "type", "") != "cpu" for one in loaded)
    return not _keeps_models() and sd_models.model_data.sd_model is not None


def _unload() -> None:
    with getattr(sd_models.model_data, "lock", contextlib.nullcontext()):
        pass  # the model that the WebUI loads at its start is there now
    if manager := _memory_manager():
        manager.unload_all_models()
    elif _keeps_models():
        for model in sd_models.model_data.loaded_sd_models:  # to the main memory
            sd_models.send_model_to_cpu(model)
    else:
        sd_models.unload_model_weights()
        if getattr(sd_models.model_data, "sd_refiner", None):
            sd_models.unload_model_weights(op="refiner")
    devices.torch_gc()


def _memory_manager() -> Any:
    """Forge's and reForge's own, which loads what it needs when it draws."""
    return sys.modules.get("backend.memory_management") or sys.modules.get("ldm_patched.modules.model_management")


def _keeps_models() -> bool:
    """Whether a model has to be brought back before it can draw: only in AUTOMATIC1111."""
    return not _memory_manager() and hasattr(sd_models.model_data, "loaded_sd_models")
