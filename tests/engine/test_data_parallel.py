"""A run by several processes learns what one process learns."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist

from dreambooth.core.errors import UserError
from dreambooth.core.job_folder import Job
from dreambooth.core.project import Project
from dreambooth.core.settings import parse
from dreambooth.engine import worker
from dreambooth.engine.run import rank_launcher
from dreambooth.engine.training import data_parallel
from dreambooth.engine.training.data_parallel import DataParallel
from dreambooth.service import launcher
from tests.conftest import ROOT
from tests.engine.runs import LORA, new_run, output, same, saved, tiny_project, told, train

PREDICTION = {"concepts.0.class_mode": "prediction", "concepts.0.class_prompt": "a star"}
SHARED = {
    "batching.train_batch_size": 1,
    "batching.gradient_accumulation_steps": 2,
    "intervals.max_train_steps": 4,
}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def star(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return tiny_project(tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(
            {
                "tuning.text_encoder_ratio": 0.5,
                "tuning.use_ema": True,
                "memory.bf16_weights": True,
                "tuning.mixed_precision": "bf16",
                "optimizer.name": "adafactor",
            },
            marks=pytest.mark.thorough,
        ),
        {**LORA, "lora.dropout": 0.3, "lora.max_norm": 0.05, **PREDICTION},
    ],
    ids=["full, in bf16", "lora"],
)
def test_two_processes_learn_what_one_learns(star: Project, settings: dict[str, Any]) -> None:
    """To the bit, as a sum of two gradients is the same in either order."""
    alone = output(train(star, **SHARED, **settings))
    assert same(alone, output(train(star, **SHARED, **settings, **{"batching.num_processes": 2})))


def test_another_process_sees_its_own_device_alone(star: Project, in_the_others: Callable[[str], None]) -> None:
    """As one that was given a card of several."""
    in_the_others("import psutil\npsutil.cpu_count = lambda *_, **__: 1\n")
    assert saved(train(star, **SHARED, **{"batching.num_processes": 2}))


def test_another_process_computes_in_the_precision_of_the_first(
    star: Project, in_the_others: Callable[[str], None]
) -> None:
    """Of two cards one may be of before bf16. Gradients of fp16 are scaled, and would be added to some that are not."""
    settings = {**SHARED, **LORA, "tuning.mixed_precision": "auto"}
    alone = output(train(star, **settings))
    in_the_others("from dreambooth.engine.training import precision\nprecision.automatic = lambda device: 'bf16'\n")
    assert same(alone, output(train(star, **settings, **{"batching.num_processes": 2})))


@pytest.mark.parametrize(
    ("of_amd", "set_to", "found"),
    [
        (False, {}, {"CUDA_VISIBLE_DEVICES": "1"}),
        (False, {"CUDA_VISIBLE_DEVICES": "2,5", "HIP_VISIBLE_DEVICES": "0,1"}, {"CUDA_VISIBLE_DEVICES": "5"}),
        (True, {}, {"HIP_VISIBLE_DEVICES": "1"}),
        (True, {"HIP_VISIBLE_DEVICES": "2,5", "CUDA_VISIBLE_DEVICES": "0,1"}, {"HIP_VISIBLE_DEVICES": "5"}),
        (True, {"CUDA_VISIBLE_DEVICES": "2,5"}, {"CUDA_VISIBLE_DEVICES": "5"}),
    ],
)
def test_another_process_is_given_none_of_the_cards_that_a_person_has_excluded(
    of_amd: bool, set_to: dict[str, str], found: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch for AMD obeys both variables, HIP's first."""
    monkeypatch.setattr(torch.version, "hip", "6.4" if of_amd else None)
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in set_to.items():
        monkeypatch.setenv(name, value)
    given = rank_launcher._own_device(1, 2, torch.device("cuda"))
    del given["OMP_NUM_THREADS"]
    assert given == found


@pytest.mark.thorough
def test_the_number_of_processes_may_change_when_a_run_goes_on(star: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    job = new_run(star, **SHARED, **{"batching.num_processes": 2})
    monkeypatch.setattr(worker.RunHooks, "requests", lambda hooks: {"pause"} if hooks.session.step == 2 else set())
    assert worker.run(job) == "paused"
    monkeypatch.undo()
    job.change({"batching.num_processes": 1})
    assert worker.run(job) == "done"
    assert same(output(job), output(train(star, **SHARED)))


@pytest.mark.thorough
def test_memory_that_is_short_in_another_process_is_met_as_in_this(star: Project, broken_once: Any) -> None:
    broken_once("torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 96.00 MiB.')")
    job = train(star, **SHARED, **{"batching.num_processes": 2})
    warning = told(job, "warning")[0]["text"]
    assert "96.00 MiB more were needed" in warning and "tuning.trace_steps off" in warning
    assert same(output(job), output(train(star, **SHARED, **job.changes())))


def test_processes_have_met_before_their_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits then for one that ends in it. One that cannot meet them may try again."""
    plain, sums = dist.all_reduce, list[torch.Tensor]()

    def fails(*given: Any) -> None:
        raise RuntimeError("Connection closed by peer")

    def counted(tensor: torch.Tensor) -> None:
        plain(tensor)
        sums.append(tensor)

    monkeypatch.setattr(data_parallel.dist, "all_reduce", fails)
    with (
        pytest.raises(data_parallel.PeerLost, match="closed by peer"),
        data_parallel.joined_processes(dist.HashStore(), 0, 1, CPU),
    ):
        pass
    assert not dist.is_initialized()
    monkeypatch.setattr(data_parallel.dist, "all_reduce", counted)
    with data_parallel.joined_processes(dist.HashStore(), 0, 1, CPU):
        assert [one.tolist() for one in sums] == [[0]]


def test_what_breaks_another_process_is_told(star: Project, broken_once: Any) -> None:
    broken_once("UserError('x.png: it is no picture; take it away.')")
    with pytest.raises(UserError, match=r"x\.png: it is no picture"):
        train(star, **SHARED, **{"batching.num_processes": 2})


@pytest.mark.thorough
def test_another_process_that_is_killed_costs_the_steps_since_the_last_state(star: Project) -> None:
    long = {**SHARED, **LORA, "intervals.max_train_steps": 12, "intervals.save_state_every_steps": 1}
    job = new_run(star, **long, **{"batching.num_processes": 2})
    with pytest.raises(UserError, match="Process 2 of 2 ended without a word"), killed_at(job, 2):
        worker.run(job)
    assert job.states()
    assert worker.run(job) == "done"
    assert same(output(job), output(train(star, **long)))


def test_a_card_that_waits_for_a_process_that_was_killed_is_told_so(
    star: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NCCL's sum would never end, and the CPU would wait for good where it reads what came of it. Here the CPU's sum
    waits in its place, and leaves what an interrupted one leaves: no numbers, from which nothing is concluded."""
    told_so, give_up, add_up = threading.Event(), DataParallel.give_up, DataParallel.add_up

    def waits(ranks: DataParallel, session: Any, losses: torch.Tensor) -> None:
        if session.step == 2:
            kill_the_other()
            assert told_so.wait(20)
            losses.fill_(torch.nan)
        else:
            add_up(ranks, session, losses)

    def gives_up(ranks: DataParallel) -> None:
        give_up(ranks)
        told_so.set()

    monkeypatch.setattr(DataParallel, "add_up", waits)
    monkeypatch.setattr(DataParallel, "give_up", gives_up)
    settings = {**SHARED, **LORA, "intervals.max_train_steps": 12, "intervals.save_state_every_steps": 1}
    job = new_run(star, **settings, **{"batching.num_processes": 2, "tuning.nonfinite_steps": 1})
    with pytest.raises(UserError, match="Process 2 of 2 ended without a word"):
        worker.run(job)
    assert job.states()[-1] == 2
    assert not told(job, "warning")


def test_a_process_that_is_killed_in_the_middle_of_a_step_ends_the_run(
    star: Project, in_the_others: Callable[[str], None]
) -> None:
    in_the_others(
        "import os, signal\n"
        "from dreambooth.engine.training.data_parallel import DataParallel\n"
        "plain, seen = DataParallel._learning, []\n"
        "def learning(*given):\n"
        "    seen.append(1)\n"
        "    if len(seen) == 2:\n"
        "        os.kill(os.getpid(), signal.SIGTERM if os.name == 'nt' else signal.SIGKILL)\n"
        "    return plain(*given)\n"
        "DataParallel._learning = learning\n"
    )
    with pytest.raises(UserError, match="Process 2 of 2 ended without a word"):
        train(star, **SHARED, **LORA, **{"batching.num_processes": 2})


def test_only_a_card_has_what_must_be_aborted(monkeypatch: pytest.MonkeyPatch) -> None:
    aborted: list[str] = []
    with data_parallel.joined_processes(dist.HashStore(), 0, 1, CPU) as ranks:
        ranks.check()
        monkeypatch.setattr(dist.ProcessGroup, "_get_backend", lambda group, device: _Backend(device.type, aborted))
        ranks.give_up()
        assert not aborted
        ranks.on_card = True
        ranks.give_up()
        assert aborted == ["cuda"], "gloo, which notices an end itself, still tells who is there"
        with pytest.raises(data_parallel.PeerLost, match="has ended"):
            ranks.begin_step()
        ranks.on_card = False


class _Backend:
    def __init__(self, kind: str, aborted: list[str]) -> None:
        self.abort = lambda: aborted.append(kind)


def test_no_process_is_left_when_the_first_is_killed(star: Project) -> None:
    job = new_run(star, **{**SHARED, "batching.num_processes": 2, "intervals.max_train_steps": 100_000})
    engine = psutil.Process(launcher.start(job, Path(sys.executable)).pid)
    until(lambda: bool(told(job, "step")))
    others = engine.children()
    assert len(others) == 1
    if sys.platform == "linux":  # the system would end them before the WebUI that has started them
        for process in (engine, *others):
            assert int(Path(f"/proc/{process.pid}/oom_score_adj").read_text()) >= 500
    engine.kill()
    until(lambda: not others[0].is_running() or others[0].status() == psutil.STATUS_ZOMBIE)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"batching.gradient_accumulation_steps": 3}, "3, which 2 processes cannot share evenly; set it to 4"),
        ({"tuning.cuda_graphs": True}, "tuning.cuda_graphs: what processes tell each other"),
        ({"imagic.enabled": True}, "batching.num_processes: imagic.enabled has one picture"),
    ],
)
def test_what_cannot_be_shared_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        parse({**SHARED, "batching.num_processes": 2, **settings})


def test_more_processes_than_devices_are_refused(star: Project) -> None:
    with pytest.raises(UserError, match=r"batching\.num_processes: it is 64, but there (is|are) .* here; set it to"):
        train(star, **{**SHARED, "batching.gradient_accumulation_steps": 64, "batching.num_processes": 64})


@pytest.fixture
def in_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Has the other processes begin with some Python."""

    def begin(code: str) -> None:
        (tmp_path / "sitecustomize.py").write_text(
            f"import sys\nif 'follow' in sys.orig_argv:\n{textwrap.indent(code, '    ')}"
        )
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))

    return begin


@pytest.fixture
def broken_once(in_the_others: Callable[[str], None]) -> Any:
    """Has the first other process that comes to its second step raise an error there."""

    def breaking(error: str) -> None:
        in_the_others(
            "from pathlib import Path\n"
            "import torch\n"
            "from dreambooth.core.errors import UserError\n"
            "from dreambooth.engine.training.data_parallel import DataParallel\n"
            "plain, seen, mark = DataParallel.add_up, [], Path(__file__).with_name('broken')\n"
            "def add_up(ranks, *given):\n"
            "    seen.append(1)\n"
            "    if len(seen) == 2 and not mark.exists():\n"
            "        mark.touch()\n"
            f"        raise {error}\n"
            "    plain(ranks, *given)\n"
            "DataParallel.add_up = add_up\n"
        )

    return breaking


@contextlib.contextmanager
def killed_at(job: Job, step: int) -> Iterator[None]:
    """Within it the other process is killed once the run has come so far."""

    def kill() -> None:
        until(lambda: any(event["step"] >= step for event in told(job, "state")))
        kill_the_other()

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def kill_the_other() -> None:
    for child in psutil.Process().children():
        if "follow" in child.cmdline():
            child.kill()


def until(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.02)
