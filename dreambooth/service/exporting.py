"""What may be exported, as what, and to where: a result, the model before training, or what a run has learned by a
state."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dreambooth.core import job_list, settings
from dreambooth.core.errors import UserError
from dreambooth.core.files import confinement, paths
from dreambooth.core.formatting import percent
from dreambooth.core.job_folder import Job
from dreambooth.core.models import checkpoint
from dreambooth.core.models.families import FAMILIES
from dreambooth.core.models.model_file import CHECKPOINTS, EMBEDDINGS, PICKLES
from dreambooth.core.project import Project
from dreambooth.core.settings import Settings
from dreambooth.service import runs
from dreambooth.service.field_names import called

MOST_RANK = 512
_NEARLY_ALL = 0.985  # shown as 99 % or 100 %
_MISSPELLED = 0.75  # how alike an ending is to a known one at least, of 1


def fields(opened: Project, wanted: Mapping[str, Any], *, label: str = "{}") -> dict[str, Any]:
    """The job's fields for an export. Raises UserError for what cannot be exported, as what, or to where."""
    merge, rank = _number(wanted, "merge", -4, 4, label), _number(wanted, "rank", 1, MOST_RANK, label)
    onto = _onto(opened, wanted.get("onto"), label)
    is_state = wanted.get("from_step") is not None
    if is_state:
        chosen, of_state = state(opened, wanted, label=label)
        what: dict[str, Any] = {**of_state, "weights": ""}
    else:
        check_no_run(wanted, label)
        what = {"weights": _exported(opened, wanted, label)}
    is_as_it_is = merge is None and rank is None and not onto
    if rank is not None and (merge is not None or onto):
        other = called("merge" if merge is not None else "onto", label)
        raise UserError(f"{called('rank', label)}: it makes a LoRA, and {other} a checkpoint; choose one.")
    if not (is_as_it_is or is_state or what["weights"]):
        raise UserError(f"{called('base', label)}: the model before training has learned nothing; take a result.")
    to = _target(wanted.get("to"), called("to", label), optional=is_state and is_as_it_is)
    kind = chosen.result_kind if is_state else _kind(what["weights"])
    if kind == "embedding":
        _check_embedding(to, {"merge": merge, "onto": onto or None, "rank": rank}, label)
    elif rank is not None or (is_as_it_is and kind == "lora"):
        if to and Path(to).suffix.lower() != ".safetensors":
            raise UserError(
                f"{called('to', label)}: a LoRA is one .safetensors file; name one, or merge it into its checkpoint "
                f"({called('merge', label)})."
            )
    elif to:
        _check_ending(Path(to), called("to", label))
    return {**what, "to": to, "merge": merge, "onto": onto, "rank": rank or 0, "half": bool(wanted.get("half"))}


def remark(done: Mapping[str, Any]) -> str:
    """What there is to say of an export besides where it lies; empty without anything."""
    held = done.get("held")
    if held is None:
        return ""
    if held > _NEARLY_ALL:
        return f"It holds {percent(held)} of what was learned."
    return f"It holds {percent(held)} of what was learned; a higher rank holds more."


def _number(wanted: Mapping[str, Any], name: str, least: int, most: int, label: str) -> Any:
    """None where it is left out."""
    value, allowed = wanted.get(name), (int,) if name == "rank" else (int, float)
    if value is not None and (isinstance(value, bool) or not isinstance(value, allowed) or not least <= value <= most):
        kind = "a whole number " if name == "rank" else ""
        raise UserError(f"{called(name, label)}: it must be {kind}from {least} to {most} (it is {value}).")
    return value


def _onto(opened: Project, named: Any, label: str) -> str:
    """The other checkpoint that what was learned is put into; empty without one. One for inpainting will do."""
    if not named:
        return ""
    file, key = confinement.named(str(named), called("onto", label)), called("onto", label)
    about, own = checkpoint.describe(checkpoint.read_header(file)), opened.about["family"]
    if about.kind != "checkpoint":
        raise UserError(f"{key}: {file} is no checkpoint.")
    if about.family != own:
        raise UserError(
            f"{key}: {file} is {FAMILIES.get(about.family, 'of another kind')}; {opened.name!r} is {FAMILIES[own]}."
        )
    if about.reason:
        raise UserError(f"{key}: {file}: {about.reason}.")
    return str(file)


def _target(named: Any, key: str, *, optional: bool) -> str:
    """The file or folder to be written; empty where the engine is to choose."""
    if optional and not named:
        return ""
    if not isinstance(named, str) or not named.strip():
        raise UserError(f"{key}: it is empty; name a file or folder to write.")
    to = confinement.named(named, key)
    if not Path(paths.meant(named)).expanduser().is_absolute():
        raise UserError(f"{key}: {named} is a name without its folder; write the whole path.")
    if reason := paths.unwritable(to.parent):
        raise UserError(f"{key}: {to} cannot be written ({reason}); name another file or folder.")
    if to.exists():
        raise UserError(f"{to}: it exists already; name another file or folder.")
    return str(to)


def _check_ending(to: Path, key: str) -> None:
    """Raises UserError for a name of a checkpoint that is neither a file of its own nor likely to be a folder."""
    ending = to.suffix.lower()
    if ending in CHECKPOINTS:
        return
    if ending in (*PICKLES, ".yaml", ".json", ".zip"):
        raise UserError(f"{key}: {to}: name a .safetensors or .ckpt file, or a folder for the Diffusers layout.")
    if close := difflib.get_close_matches(ending, CHECKPOINTS, n=1, cutoff=_MISSPELLED):
        raise UserError(f"{key}: {to.suffix} is no ending of a model file; did you mean {to.stem}{close[0]}?")


def _kind(file: str) -> str:
    return checkpoint.describe(checkpoint.read_header(Path(file))).kind if file else ""


def _check_embedding(to: str, otherwise: Mapping[str, Any], label: str) -> None:
    """Raises UserError for what an embedding cannot be written as."""
    for name, value in otherwise.items():
        if value is not None:
            raise UserError(
                f"{called(name, label)}: an embedding is a word, and changes no weights that another file could hold; "
                "leave it out."
            )
    if to and Path(to).suffix.lower() not in EMBEDDINGS:
        raise UserError(f"{called('to', label)}: an embedding is one .safetensors or .pt file; name one.")


def check_no_run(wanted: Mapping[str, Any], label: str) -> None:
    """A run alone names no weights; the newest result, of whatever run, would be taken for that run's."""
    if wanted.get("run") is not None:
        raise UserError(
            f"{called('run', label)}: it goes with {called('from_step', label)}, the state of that run; give both, or "
            f"its file with {called('weights', label)}."
        )


def state(opened: Project, wanted: Mapping[str, Any], *, label: str = "{}") -> tuple[Settings, dict[str, Any]]:
    """The state that is meant by `from_step` and `run`, which is the newest where it is left out: the settings of its
    run, and the fields for a job. Raises UserError for a state that is not there or holds no whole result."""
    if wanted.get("weights") or wanted.get("base"):
        others = " and ".join(called(key, label) for key in ("from_step", "weights", "base"))
        raise UserError(f"{others} exclude each other; name one.")
    number, step = wanted.get("run"), wanted["from_step"]
    for key, value in (("run", number), ("from_step", step)):
        if (value is not None or key == "from_step") and (isinstance(value, bool) or not isinstance(value, int)):
            raise UserError(f"{called(key, label)}: it must be a whole number (it is {value!r}).")
    job = _run(opened, number, label)
    if step not in (there := job.states()):
        known = ", ".join(map(str, there)) or "none; a run that has ended has its result"
        raise UserError(
            f"{called('from_step', label)}: the run {job.name} has no state after step {step} (there: {known})."
        )
    chosen = settings.parse(job.settings())
    if chosen.imagic.enabled:
        raise UserError(
            f"The run {job.name} is one of Imagic, whose pictures need the fitted text that only the run writes; "
            "resume it and press Save now, or stop it."
        )
    return chosen, {"run": int(job.folder.name), "from_step": step}


def _run(opened: Project, number: int | None, label: str) -> Job:
    found = job_list.runs(opened)
    if number is None and found:
        return found[-1]
    for job in found:
        if int(job.folder.name) == number:
            return job
    known = ", ".join(str(int(job.folder.name)) for job in found) or "none"
    raise UserError(f"{label.format('run')}: the model {opened.name!r} has no run {number or ''} (there: {known}).")


def _exported(opened: Project, wanted: Mapping[str, Any], label: str) -> str:
    """The file that is meant; empty for the model that training began with."""
    base = bool(wanted.get("base"))
    file = runs.weights(opened, str(wanted.get("weights") or ""), base=base)
    if file is None and not base:
        raise UserError(
            f"The model {opened.name!r} has no finished run to export ({label.format('base')} exports the model that "
            "it was made from)."
        )
    return str(file or "")
