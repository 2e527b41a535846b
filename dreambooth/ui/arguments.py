"""Which commands there are, and what each takes."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from dreambooth.core import schema
from dreambooth.core.models import captioner_folder
from dreambooth.core.models.load_overrides import Origin
from dreambooth.service import short_jobs
from dreambooth.ui import benches, commands, preparing, results
from dreambooth.ui.describe import of_models, of_runs

_RUN = "NAME for the newest run of a model, or NAME/3 for its third"


def _add_tools(add: Callable[..., Any]) -> None:
    add("setup", commands.setup, "Make or repair the engine's environment.", of_models.setup).add_argument(
        "--development", action="store_true", help="with what the tests need"
    )
    add(
        "demo", commands.run_demo, "The whole job on the bundled miniature model and pictures.", of_runs.demo
    ).add_argument("--out", metavar="DIR", help="a new folder for everything that the demo makes (default: demo)")
    add("ui", commands.open_page, "The page, without a WebUI.", lambda _: "").add_argument(
        "--port", type=int, default=7870, metavar="N", help="default 7870"
    )
    add("inspect", commands.inspect, "Say what a checkpoint, LoRA or embedding file is.", of_models.about).add_argument(
        "file", metavar="FILE"
    )
    add(
        "settings",
        commands.show_settings,
        "List all settings, or those of a model that differ from their defaults.",
        of_models.settings,
    ).add_argument("name", metavar="NAME", nargs="?", help="a model (default: all settings, as in docs/settings.md)")
    add("presets", preparing.show_presets, "List the presets, with a reason for each value.", of_models.presets)
    benches.add(add)


def _add_models(add: Callable[..., Any]) -> None:
    """Making a model's folder."""
    sub = add(
        "create", commands.create, "Make a model's folder from a checkpoint.", of_models.created, takes_settings=True
    )
    sub.add_argument("name", metavar="NAME")
    sub.add_argument(
        "--source",
        required=True,
        metavar="FILE|DIR|HUB_ID",
        help="the checkpoint, Diffusers folder or model of the Hugging Face hub to start from",
    )
    sub.add_argument("--revision", default="", metavar="NAME", help="for a model of the hub: its branch, tag or commit")
    for leaf in schema.leaves(Origin):
        flag = f"--{leaf.key.replace('_', '-')}"
        sub.add_argument(flag, dest=leaf.key, default=leaf.default, choices=leaf.choices or None, help=leaf.spec.help)


def _add_preparing(add: Callable[..., Any]) -> None:
    """What is looked at and chosen before a run."""
    sub = add(
        "check",
        commands.check,
        "Show the plan of a run: every picture with its crop and caption, steps, time, memory and disk, and what "
        "would stop it.",
        of_runs.plan,
        takes_settings=True,
    )
    sub.add_argument("name", metavar="NAME")
    sub.add_argument("--sheet", metavar="FILE", help="also write all pictures on one sheet, a .html or .png file")
    sub = add("caption", preparing.caption, "Have a captioning model describe the pictures.", of_runs.captions)
    sub.add_argument("name", metavar="NAME")
    sub.add_argument(
        "--with",
        dest="captioner",
        required=True,
        metavar="HUB_ID|DIR",
        help=f"a BLIP or GIT model of the Hugging Face hub, such as {captioner_folder.BLIP}, or a folder",
    )
    sub.add_argument("--concept", type=int, metavar="N", help="only this concept, which count from 0 (default: all)")
    sub.add_argument("--over", action="store_true", help="replace captions that are there, too")
    sub = add("crop", preparing.crop, "Choose the crop of a picture, or show what was chosen.", of_runs.crops)
    sub.add_argument("picture", metavar="PICTURE|DIR")
    where = "the middle of what matters, from 0 to 1 of the width and of the height; the crop lies around it"
    sub.add_argument("--at", nargs=2, type=float, metavar=("X", "Y"), help=where)
    tighter = "how many times tighter than the largest crop, up to where it would be enlarged (default 1)"
    sub.add_argument("--zoom", type=float, metavar="Z", help=tighter)
    sub.add_argument("--automatic", action="store_true", help="forget your choice; the settings decide again")
    sub = add(
        "import",
        preparing.import_settings,
        "Take over the settings of sd_dreambooth_extension, kohya's scripts, kohya_ss or OneTrainer.",
        of_models.imported,
        takes_settings=True,
    )
    sub.add_argument("name", metavar="NAME")
    sub.add_argument(
        "file",
        metavar="FILE|DIR",
        help="concepts_list.json, db_config.json, a dataset or config .toml, a .json of kohya_ss or OneTrainer, or a "
        "folder of folders such as '10_sks dog'",
    )
    sub = add(
        "performance",
        preparing.performance,
        "Say which settings fit a card, and why; without a model, for every family and card.",
        of_models.performance,
        takes_settings=True,
    )
    sub.add_argument("name", metavar="NAME", nargs="?", help="a model, whose own settings are the start")
    sub.add_argument("--card", metavar="8GB", help="the card's memory (default: this machine's)")
    sub.add_argument(
        "--apply", action="store_true", help="write them into the model's own settings, as the page's button does"
    )
    sub = add(
        "tokens",
        preparing.tokens,
        "Show what the words of a prompt mean to a model, and suggest rare ones.",
        of_models.tokens,
    )
    sub.add_argument("name", metavar="NAME")
    sub.add_argument("prompt", metavar="PROMPT", help="the words, such as 'sks dog'")
    sub.add_argument(
        "--candidates",
        type=int,
        default=short_jobs.CANDIDATES,
        metavar="N",
        help=f"how many rare words to try (default {short_jobs.CANDIDATES})",
    )


def _add_keeping(add: Callable[..., Any]) -> None:
    """What else becomes of a model's folder."""
    add("models", preparing.list_models, "List all models.", of_models.model_list)
    add(
        "set",
        preparing.change,
        "Change a model's own settings, such as --lora.rank 8.",
        of_models.changed,
        takes_settings=True,
    ).add_argument("name", metavar="NAME")
    for name, command, meaning, show in (
        (
            "undo",
            preparing.undo,
            "Put back the settings from before the last import, or the last removal of a concept on the page.",
            of_models.undone,
        ),
        (
            "notice",
            preparing.send_notice,
            "Send a test message to the model's webhook.",
            of_models.told,
        ),
    ):
        add(name, command, meaning, show).add_argument("name", metavar="NAME")
    for name, command, meaning in (
        ("rename", preparing.rename, "Rename a model."),
        ("duplicate", preparing.duplicate, "Make a model with the settings and pictures of another, without its runs."),
    ):
        sub = add(name, command, meaning, of_models.kept)
        sub.add_argument("name", metavar="NAME")
        sub.add_argument("new", metavar="NEW_NAME")
    add(
        "delete",
        preparing.delete,
        "Move a model's folder to the trash beside the models; the results that its runs wrote stay.",
        of_models.deleted,
    ).add_argument("name", metavar="NAME")


def _add_training(add: Callable[..., Any]) -> None:
    for name, command, meaning, show in (
        (
            "class-images",
            commands.class_images,
            "Draw the class images that a run needs.",
            of_runs.class_pictures,
        ),
        (
            "train",
            commands.train,
            "Train; every setting is a flag, such as --lora.rank 8 (see docs/settings.md).",
            of_runs.finished,
        ),
    ):
        add(name, command, meaning, show, takes_settings=True).add_argument("name", metavar="NAME")
    add("runs", commands.runs, "List all runs.", of_runs.run_list)
    for name, command, meaning in (
        ("pause", commands.pause, "Save a run's state and end its engine."),
        ("save", commands.save, "Have a running run write a result now; it goes on."),
        ("preview", commands.preview, "Have a running run draw previews now; it goes on."),
    ):
        add(name, command, meaning, of_runs.asked).add_argument("run", metavar="RUN", help=_RUN)
    sub = add(
        "resume",
        commands.resume,
        "Continue a run that was paused or lost; settings that may still change are flags, such as "
        "--intervals.max_train_steps 3000.",
        of_runs.finished,
        takes_settings=True,
        presets=False,
    )
    sub.add_argument("run", metavar="RUN", help=_RUN)
    sub.add_argument(
        "--model-settings", action="store_true", help="take the model's own settings where they may still change"
    )
    sub.add_argument("--from-step", type=int, metavar="N", help="go back to the state that was saved after this step")
    sub = add("stop", commands.stop, "End a run and write its result.", of_runs.asked)
    sub.add_argument("run", metavar="RUN", help=_RUN)
    sub.add_argument(
        "--discard",
        action="store_true",
        help="write no result and delete its states; results and previews that are written already stay",
    )


def _add_learning_on(add: Callable[..., Any]) -> None:
    sub = add(
        "learn-on",
        preparing.learn_on,
        "Begin the next run with a result; of a checkpoint, make a new model with the same settings and pictures.",
        of_models.told,
    )
    sub.add_argument("name", metavar="NAME")
    sub.add_argument("file", metavar="FILE", nargs="?", help="a result of the model (default: the newest)")


def _add_report(add: Callable[..., Any]) -> None:
    sub = add(
        "report",
        results.report,
        "Collect what is needed to report a problem in one .zip file, without pictures and secrets.",
        lambda result: f"Written: {result['path']}",
    )
    sub.add_argument("run", metavar="RUN", help=_RUN)
    sub.add_argument("--to", metavar="FILE", help="a new file (default: NAME-3-report.zip, here)")


def _add_results(add: Callable[..., Any]) -> None:
    _add_generate(add)
    _add_sheet(add)
    sub = add("export", results.export, "Write the newest result as a file or a Diffusers folder.", of_runs.exported)
    sub.add_argument("name", metavar="NAME")
    sub.add_argument(
        "--to",
        metavar="FILE|DIR",
        help="a .safetensors or .ckpt file (for an embedding .safetensors or .pt), or a new folder; without it "
        "--from-step writes the file that the run itself would write",
    )
    merge = "write the checkpoint it was trained from with the result merged in at this weight, such as 0.8"
    sub.add_argument("--merge", type=float, metavar="WEIGHT", help=merge)
    onto = "merge into this other checkpoint of the same family instead, also one for inpainting"
    sub.add_argument("--onto", metavar="FILE|DIR", help=onto)
    rank = "write a LoRA of this rank: extracted from a fully trained model, or reduced from a larger LoRA"
    sub.add_argument("--rank", type=int, metavar="N", help=rank)
    _add_state(sub)
    sub.add_argument("--half", action="store_true", help="in half precision (default: as the file is)")
    _add_weights(sub)
    sub = add(
        "delete-result",
        results.delete,
        "Delete a result for good, with the files that belong to it.",
        lambda result: str(result["done"]),
    )
    sub.add_argument("name", metavar="NAME")
    sub.add_argument("file", metavar="FILE", help="its name or path, as runs has it")


def _add_generate(add: Callable[..., Any]) -> None:
    sub = add("generate", results.generate, "Draw pictures with the newest result of a model.", of_runs.pictures)
    sub.add_argument("name", metavar="NAME")
    sub.add_argument("--prompt", help="what to draw; may be left out for a result of Imagic, which has its own")
    sub.add_argument(
        "--eta", type=float, help="for a result of Imagic: 0 draws the picture, 1 the prompt (default 0.7)"
    )
    sub.add_argument("--count", type=int, default=_default("count"), help="how many pictures (default %(default)s)")
    sub.add_argument(
        "--batch",
        type=int,
        default=_default("batch"),
        help="pictures drawn at a time (default 0: as many as there is room for)",
    )
    weight = "of the LoRA (default %(default)s)"
    sub.add_argument("--lora-weight", type=float, default=_default("lora_weight"), help=weight)
    _add_drawing(sub)
    _add_weights(sub)
    _add_state(sub)


def _add_sheet(add: Callable[..., Any]) -> None:
    sub = add("sheet", results.sheet, "Draw one prompt with several results at several weights.", of_runs.sheet)
    sub.add_argument("name", metavar="NAME")
    sub.add_argument("--prompt", required=True, help="what to draw")
    sub.add_argument("--weights", nargs="+", metavar="FILE", help="the rows: results (default: all that runs wrote)")
    sub.add_argument("--from-step", type=int, nargs="+", metavar="N", help="rows of a run's states instead")
    sub.add_argument("--run", type=int, metavar="N", help="the run that the states are of (default: the newest)")
    sub.add_argument("--base", action="store_true", help="a first row of the untrained model")
    sub.add_argument(
        "--lora-weights",
        type=float,
        nargs="+",
        default=[0.6, 0.8, 1.0],
        metavar="W",
        help="the columns (default: 0.6 0.8 1)",
    )
    _add_drawing(sub)


def _default(name: str) -> Any:
    """Of what is said about pictures to draw."""
    return short_jobs.DRAWING[name][0]


def _add_drawing(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--negative", default="", metavar="PROMPT", help="what must not be drawn")
    sub.add_argument(
        "--seed", type=int, default=_default("seed"), help="of the first picture (default %(default)s); -1 takes any"
    )
    sub.add_argument("--steps", type=int, default=_default("steps"), help="sampling steps (default %(default)s)")
    sub.add_argument("--cfg", type=float, default=_default("cfg"), help="guidance scale (default %(default)s)")
    sub.add_argument("--width", type=int, default=_default("width"), help="pixels (default 0: the model's own size)")
    sub.add_argument("--height", type=int, default=_default("height"), help="the same")
    names = ", ".join(short_jobs.SCHEDULER.choices)
    default = short_jobs.SCHEDULER.default
    sub.add_argument("--scheduler", metavar="NAME", default=default, help=f"{names} (default: {default})")
    sub.add_argument("--out", metavar="DIR", help="where to (default: the model's folder)")


def _add_state(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--from-step", type=int, metavar="N", help="the state that a run saved after this step, not a result"
    )
    sub.add_argument("--run", type=int, metavar="N", help="the run that the state is of (default: the newest)")


def _add_weights(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--base", action="store_true", help="the untrained model, not the newest result")
    sub.add_argument("--weights", metavar="FILE", help="this checkpoint, LoRA or embedding, not the newest result")


# In the order in which --help lists them; each is given what adds a command.
GROUPS = (
    _add_tools,
    _add_models,
    _add_keeping,
    _add_preparing,
    _add_training,
    _add_learning_on,
    _add_report,
    _add_results,
)
