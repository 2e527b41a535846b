"""Starts an engine process: `python -m dreambooth.engine FOLDER` does the job that the folder describes; with `queued`
behind it, only if the job is still in the queue when the engine could begin.

In the folder's place `selfcheck` and `toml FILE` print a report and a file's content as JSON, `sizes` those of the
pictures in a JSON list on its input (a line for each as soon as it is known, after the word ready), and `jpeg FILE
SIDE` a picture; `selfcheck DEVICE CHOICE` and `follow` are for processes that another one of the engine starts.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import json
import os
import sys
import traceback
from pathlib import Path

from dreambooth.core import device, linux
from dreambooth.core.errors import RUN_SETUP, Problem, UserError
from dreambooth.core.files import lock, occupancy
from dreambooth.core.install_paths import ENGINE, ENGINE_USERS, SETTING_UP
from dreambooth.core.job_folder import Job
from dreambooth.engine import out_of_memory
from dreambooth.engine.process import lazy_imports
from dreambooth.engine.process.listener import Listener, asked_to_end, ends_at_once, take_signals
from dreambooth.engine.run import recovery

DONE, BROKEN, REFUSED, BUSY, TAKEN_OUT = 0, 1, 2, 3, 4


def main(arguments: list[str]) -> int:
    lazy_imports.install()
    if arguments[0] == "selfcheck":
        return _check(arguments[1:])
    if arguments[0] == "toml":  # for Python 3.10, whose own library cannot read it
        return _print_toml(Path(arguments[1]))
    if arguments[0] in ("sizes", "jpeg"):  # for a WebUI's Python, whose Pillow knows fewer kinds
        return _print_picture(*arguments)
    if arguments[0] == "follow":
        from dreambooth.engine.run import rank_worker

        folder, rank, size, store, precision = arguments[1:]
        return rank_worker.run(Path(folder), int(rank), int(size), store, precision)
    return _work(Job(Path(arguments[0])), is_queued=arguments[1:] == ["queued"])


def _check(arguments: list[str]) -> int:
    """All, or some choices on a device, for process/probe.py."""
    from dreambooth.engine import selfcheck

    if arguments:
        import torch

        selfcheck.tell(torch.device(arguments[0]), arguments[1:])
    else:
        print(json.dumps(selfcheck.report()))
    return DONE


def _work(job: Job, *, is_queued: bool) -> int:
    """The job from its beginning to its last event. Its locks are held until then, or until the process is no more."""
    faulthandler.enable()  # a crash of native code leaves its place in the log
    linux.go_first()
    with contextlib.ExitStack() as held:
        if busy := _take_locks(job, held):
            return busy
        if not job.clear_request("start") and is_queued:
            return TAKEN_OUT
        take_signals(job)
        listener = Listener(job)
        listener.let_end(*ends_at_once(job))
        kind = job.read()["kind"]
        numbers = {"pid": os.getpid(), "parent": os.getppid()}
        job.report("started", kind=kind, **numbers, boot=linux.boot(), memory_kills=linux.memory_kills())
        listener.start()
        return _report_ending(job, kind, listener)


def _take_locks(job: Job, held: contextlib.ExitStack) -> int:
    """The job, the engine's packages and the device for this process. Returns the exit code if one is taken."""
    alive = job.hold()
    if alive is None:
        print(f"{job.folder}: another engine is at work on this job already", file=sys.stderr)
        return REFUSED
    held.enter_context(alive)
    if Path(sys.prefix) == ENGINE:
        with contextlib.suppress(PermissionError):  # another user's set-up, as in a container; it waits for nobody then
            held.enter_context(occupancy.enter(ENGINE_USERS))
        if lock.is_held(SETTING_UP):
            print(f"{job.folder}: the engine's packages are being changed", file=sys.stderr)
            return BUSY
    if job.needs_device:
        on_device = device.hold(job)
        if on_device is None:
            print(f"{job.folder}: another engine is at work on the device", file=sys.stderr)
            return BUSY
        held.enter_context(on_device)
    return 0


def _report_ending(job: Job, kind: str, listener: Listener) -> int:
    try:
        ending, fields = _do(job, kind, listener)
    except UserError as error:
        job.report("failed", **error.as_json(), refused=True)
        return REFUSED
    except BaseException as error:  # noqa: BLE001  (the process ends here; it becomes an event)
        ending, fields = (asked_to_end(job) if listener.has_ended else ""), {}
        if not ending:
            traceback.print_exc()
            job.report("failed", **UserError(_explain(error, job, kind)).as_json(), refused=False)
            return BROKEN
    if ending == "paused" and kind not in ("train", "class-images"):  # only these can go on
        ending = "stopped"
    if ending == "discarded":
        ending, fields = "stopped", {"discarded": True}
        job.forget_states()  # the run itself has done so, unless it was ended before it had begun
    for request in ("start", *job.requests()):
        job.clear_request(request)
    job.report(ending, **fields)
    return DONE


def _print_toml(path: Path) -> int:
    import tomli

    try:
        print(json.dumps(tomli.loads(path.read_text(encoding="utf-8-sig")), default=str))
    except (OSError, ValueError, RecursionError) as error:
        print(json.dumps({"problem": str(error).splitlines()[0]}))
        return REFUSED
    return DONE


def _print_picture(what: str, file: str = "", side: str = "0") -> int:
    from dreambooth.engine.data import conversion

    if what == "sizes":
        print("ready", flush=True)
        for one in conversion.sizes(map(Path, json.load(sys.stdin))):
            print(json.dumps(one), flush=True)  # one that ends this process, or takes too long, spoils none before it
        return DONE
    try:
        sys.stdout.buffer.write(conversion.jpeg(Path(file), int(side)))
    except UserError as error:
        print(error.problems[0], file=sys.stderr)
        return REFUSED
    return DONE


# Each kind of errand: the module under dreambooth.engine and the function that does it, {job} -> what it has to say.
# A module is imported when its turn comes, so that none pays for another's imports.
_ERRANDS = {
    "check": ("plan", "report"),
    "generate": ("generate", "run"),
    "export": ("export", "run"),
    "tokens": ("prompts.tokens", "run"),
    "caption": ("captioning", "run"),
    "download": ("download", "run"),
    "bench-files": ("bench.files", "run"),
    "bench-training": ("bench.training", "measure"),
    "bench-drawing": ("bench.drawing", "measure"),
    "bench-memory": ("bench.table", "run"),
    "bench-operations": ("bench.operations", "run"),
    "bench-plans": ("bench.plans", "measure"),
    "bench-choices": ("bench.choices", "measure"),
    "bench-card": ("bench.card", "measure"),
    "bench-sweep": ("bench.sweep", "run"),
    "bench-best": ("bench.best", "run"),
    "bench-states": ("bench.states", "measure"),
    "measure": ("miniature.measure", "run"),
}


def _do(job: Job, kind: str, listener: Listener) -> tuple[str, dict[str, object]]:
    """The job's ending and what it has to say."""
    if kind == "train":
        from dreambooth.engine import worker

        lazy_imports.settle()
        return worker.run(job, listener.let_end), {}
    if kind == "class-images":
        from dreambooth.engine import class_images

        lazy_imports.settle()
        return class_images.run(job)
    if kind not in _ERRANDS:
        raise UserError(f"{job.folder}: there is no kind of job called {kind!r}.")
    module, function = _ERRANDS[kind]
    errand = getattr(importlib.import_module(f"dreambooth.engine.{module}"), function)
    lazy_imports.settle()
    return "done", errand(job)


def _explain(error: BaseException, job: Job, kind: str) -> Problem:
    """What is no person's fault, with what to do."""
    if out_of_memory.is_out_of_memory(error):
        return recovery.without_retry(out_of_memory.requested(error), draws=kind != "train")
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if isinstance(error, (ImportError, SyntaxError)):
        message = f"A package of the engine does not load: {text} (the whole report is in {job.log})."
        return Problem(message, str(job.log), RUN_SETUP)
    return Problem(
        f"The engine stopped on an error of its own: {text} (the whole report is in {job.log}).",
        str(job.log),
        "Try again; if it comes back, tell of it with what `report` collects.",
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
