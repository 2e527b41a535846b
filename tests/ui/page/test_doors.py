"""The page, the HTTP API and the command line are doors to one service, and none can do what another cannot.

Each ability is named once, with its three doors or the reason why one is missing. A button, a route or a command that
is in no row fails here, and so does one that is not there any more.
"""

from __future__ import annotations

import argparse
from typing import Any

import gradio as gr
import pytest

from dreambooth.core.install_paths import PROJECT
from dreambooth.core.models.load_overrides import Origin
from dreambooth.core.presets import PRESETS
from dreambooth.core.schema import leaves
from dreambooth.host.standalone import Standalone
from dreambooth.service import api, short_jobs
from dreambooth.ui import command_line
from dreambooth.ui.page import build


class Why(str):
    """Why there is no such door."""


Door = tuple[str, ...] | Why

ALONE = Why("it makes or opens what the other two are part of")
IN_SIGHT = Why("the page shows it all the time")
HIDDEN = ("db_save_draft", "db_compare", "db_look_again", "db_reset")  # pressed by the page's script alone

# What can be done: (on the page, by the API, by a command). Of the page the id of a button or field, or the class or
# attribute of what is drawn; of the API method and path; of a command its name, with a flag where that does it.
ABILITIES: dict[str, tuple[Door, Door, Door]] = {
    # The machine
    "make or repair the engine": (("db_set_up",), ("POST /engine/setup",), ("setup",)),
    "see how the engine is": (IN_SIGHT, ("GET /status", "GET /engine/log", "POST /engine/check"), ("setup",)),
    "open the page": (ALONE, ALONE, ("ui",)),
    "try it on the miniature": (Why("a page without models begins with the miniature"), ALONE, ("demo",)),
    "measure": (Why("a bench wants a machine that does nothing else"), ALONE, ("bench",)),
    # What there is to know
    "read of every setting": (("db-help",), ("GET /settings",), ("settings",)),
    "read of the presets": (("db_preset_said",), ("GET /presets",), ("presets",)),
    "tell what a file is": (
        ("db_source_about", "db_lora_start", "db_embedding_start"),
        ("POST /inspect",),
        ("inspect",),
    ),
    "tell what words are to a model": (("db_words_look",), ("POST /models/{name}/errands",), ("tokens",)),
    "tell what fits every card": (
        Why("it is of no model"),
        ("POST /performance",),
        ("performance",),
    ),
    "list the checkpoints": (
        ("db_new_source", "db_refresh_checkpoints"),
        ("GET /checkpoints", "POST /refresh"),
        Why("a shell lists files"),
    ),
    # Models
    "list the models": (("db_model", "db_refresh"), ("GET /models", "GET /models/{name}"), ("models",)),
    "make a model": (("db_create",), ("POST /models",), ("create",)),
    "say how a checkpoint is read": (
        tuple(f"db_{leaf.key.replace('.', '_')}" for leaf in leaves(Origin, prefix="origin.")),
        ("POST /models",),
        tuple(f"create --{leaf.key.replace('_', '-')}" for leaf in leaves(Origin)),
    ),
    "fetch a model of the hub, of any revision": (
        ("db_new_source", "db_new_revision"),
        ("POST /downloads", "GET /downloads/{number}", "POST /downloads/{number}/stop"),
        ("create --revision",),
    ),
    "rename, duplicate, delete a model": (
        ("db_rename", "db_duplicate", "db_delete"),
        ("POST /models/{name}/rename", "POST /models/{name}/duplicate", "DELETE /models/{name}"),
        ("rename", "duplicate", "delete"),
    ),
    "learn on from a result": (("db-learn",), ("POST /models/{name}/learn-on",), ("learn-on",)),
    # Settings
    "read a model's settings": (IN_SIGHT, ("GET /models/{name}/settings",), ("settings",)),
    "change a model's settings": (
        ("db-setting",),
        ("PUT /models/{name}/settings", "PATCH /models/{name}/settings"),
        ("set",),
    ),
    "be told what is wrong with settings": (
        ("db_said",),
        ("POST /settings/check",),
        Why("set refuses them with every reason"),
    ),
    "add and remove a concept": (
        ("db_concept_add", "db_concept_remove"),
        ("PATCH /models/{name}/settings",),
        ("set --settings",),
    ),
    "take a preset": (
        tuple(f"db_preset_{name}" for name in PRESETS),
        ("POST /models/{name}/preset",),
        ("set --preset",),
    ),
    "import settings": (("db_import",), ("POST /models/{name}/import",), ("import",)),
    "take that back": (("data-db-undo", "db_undo"), ("POST /models/{name}/undo",), ("undo",)),
    "set what fits a card": (("db_performance",), ("POST /models/{name}/performance",), ("performance --apply",)),
    "try the webhook": (("db_test_notice",), ("POST /models/{name}/notice",), ("notice",)),
    # Pictures
    "see the pictures": (
        ("db_pictures",),
        ("GET /models/{name}/concepts/{concept}/pictures", "GET /models/{name}/concepts/{concept}/picture"),
        ("check --sheet",),
    ),
    "bring pictures": (("db_drop",), Why("they are a folder of the machine"), Why("they are a folder of the machine")),
    "caption a picture": (
        ("data-db-caption",),
        ("PUT /models/{name}/concepts/{concept}/caption",),
        Why("it is a text file beside the picture"),
    ),
    "choose a picture's crop by hand": (
        ("data-db-crop",),
        ("PUT /models/{name}/concepts/{concept}/crop", "DELETE /models/{name}/concepts/{concept}/crop"),
        ("crop",),
    ),
    "take a dropped picture away": (
        ("db-away",),
        ("POST /models/{name}/concepts/{concept}/remove",),
        Why("it is a file in a folder"),
    ),
    "have pictures described": (("data-db-describe",), ("POST /models/{name}/errands",), ("caption",)),
    "check a run beforehand": (("db_check",), ("POST /models/{name}/errands",), ("check",)),
    "make class pictures": (("db_class_images",), ("POST /models/{name}/errands",), ("class-images",)),
    # Runs
    "train": (("db_train", "db_train_anew"), ("POST /models/{name}/runs",), ("train",)),
    "see the runs": (
        ("db_run", "db_model_about"),
        (
            "GET /runs",
            "GET /models/{name}/runs",
            "GET /models/{name}/runs/{number}",
            "GET /models/{name}/runs/{number}/events",
            "GET /models/{name}/runs/{number}/log",
            "GET /models/{name}/runs/{number}/settings",
        ),
        ("runs",),
    ),
    "pause, end, save and preview a run": (
        ("db_pause", "db_stop", "db_discard", "db_save", "db_preview"),
        ("POST /models/{name}/runs/{number}/request",),
        ("pause", "stop", "stop --discard", "save", "preview"),
    ),
    "resume a run": (
        ("db_resume", "db_resume_with_page", "db-point"),
        ("POST /models/{name}/runs/{number}/resume", "GET /models/{name}/runs/{number}/differences"),
        ("resume", "resume --model-settings", "resume --from-step"),
    ),
    "report a run that went wrong": (("db-report",), ("GET /models/{name}/report",), ("report",)),
    # Results
    "see the results": (
        ("db_model_about",),
        ("GET /models/{name}/outputs", "GET /models/{name}/picture"),
        ("runs",),
    ),
    "delete a result": (("db-delete",), ("POST /models/{name}/outputs/delete",), ("delete-result",)),
    "draw pictures": (("db_draw",), ("POST /models/{name}/errands",), ("generate",)),
    "draw a sheet": (("db_draw_sheet",), ("POST /models/{name}/errands",), ("sheet",)),
    "draw with the WebUI": (
        ("db_library", "db_sampler"),
        ("POST /models/{name}/errands",),
        Why("only a WebUI that is open can"),
    ),
    "export": (("db_export", "db-point"), ("POST /models/{name}/errands",), ("export", "export --from-step")),
    "stop a short job, and see how it goes": (
        ("db-stop",),
        (
            "GET /models/{name}/errands/{number}",
            "GET /models/{name}/errands/{number}/events",
            "POST /models/{name}/errands/{number}/stop",
        ),
        ("stop",),
    ),
}


def named(place: int) -> set[str]:
    return {name for doors in ABILITIES.values() if not isinstance(doors[place], Why) for name in doors[place]}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Standalone:
    return Standalone(str(tmp_path_factory.mktemp("doors")))


def test_every_button_of_the_page_is_an_ability(host: Standalone) -> None:
    blocks = [(block, getattr(block, "elem_id", None) or "") for block in build(host).blocks.values()]
    buttons = {name for block, name in blocks if isinstance(block, gr.Button)}
    assert buttons - set(HIDDEN) - named(0) == set()
    files = (*(PROJECT / "dreambooth" / "ui" / "page").glob("*.py"), *(PROJECT / "javascript").glob("*.js"))
    sources = "".join(path.read_text(encoding="utf-8") for path in files)
    there = {name for _, name in blocks}
    assert [name for name in named(0) if name not in there and (name.startswith("db_") or name not in sources)] == []


def test_every_route_of_the_api_is_an_ability(host: Standalone) -> None:
    routes: list[Any] = api.router(host).routes
    assert {f"{min(route.methods)} {route.path.removeprefix('/dreambooth')}" for route in routes} == named(1)


def commands() -> dict[str, set[str]]:
    """The flags of each command."""
    parser, _ = command_line._parser()
    subs: Any = next(one for one in parser._actions if isinstance(one, argparse._SubParsersAction))
    return {name: {flag for one in sub._actions for flag in one.option_strings} for name, sub in subs.choices.items()}


def test_every_command_is_an_ability() -> None:
    there, told = commands(), named(2)
    assert {name.split()[0] for name in told} == set(there)
    assert [name for name in told if " " in name and name.split()[1] not in there[name.split()[0]]] == []


@pytest.mark.parametrize("kind", ["generate", "export", "tokens"])
def test_a_short_job_takes_the_same_by_every_door(kind: str) -> None:
    given = {flag[2:].replace("-", "_") for flag in commands()[kind] if flag.startswith("--")}
    given |= {"prompt"} if kind == "tokens" else set()  # it has no flag there
    of_webui_and_sheet = {"library", "sampler", "sheet"}
    assert given - {"help", "data", "json"} == set(short_jobs.FIELDS[kind]) - of_webui_and_sheet


def test_whoever_lists_a_door_as_missing_says_why() -> None:
    reasons = [door for doors in ABILITIES.values() for door in doors if isinstance(door, Why)]
    assert all(len(reason.split()) > 2 for reason in reasons)
