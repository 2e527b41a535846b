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
    add("inspect", commands.inspect, "Say what a checkpoint, LoRA or embedding is.", of_models.about).add_argument(
        "file", metavar="FILE"
    )
    add("settings", commands.show_settings, "List every setting, or a model's own.", of_models.settings).add_argument(
        "name", metavar="NAME", nargs="?", help="a model: what is not at its default"
    )
    add("presets", preparing.show_presets, "List the presets.", of_models.presets)
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
    sub.add_argument("--revision", default="", metavar="NAME", help="of a model of the hub: branch, tag or commit")
    for leaf in schema.leaves(Origin):
        flag = f"--{leaf.key.replace('_', '-')}"
        sub.add_argument(flag, dest=leaf.key, default=leaf.default, choices=leaf.choices or None, help=leaf.spec.help)


def _add_preparing(add: Callable[..., Any]) -> None:
    """What is looked at and chosen before a run."""
    sub = add(
        "check",
        commands.check,
        "Show the plan of a run: every picture with its crop and caption, steps, time, memory, disk.",
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
    sub = add("crop", preparing.crop, "Choose what is kept of a picture, or say what was chosen.", of_runs.crops)
    sub.add_argument("picture", metavar="PICTURE|DIR")
    where = "the middle of what matters, from 0 to 1 of the width and of the height; the crop lies around it"
    sub.add_argument("--at", nargs=2, type=float, metavar=("X", "Y"), help=where)
    tighter = "so many times tighter than as much as there is, up to where it would be enlarged (default 1)"
    sub.add_argument("--zoom", type=float, metavar="Z", help=tighter)
    sub.add_argument("--automatic", action="store_true", help="forget what was chosen; the settings decide again")
    sub = add(
        "import",
        preparing.import_settings,
        "Take over the settings of sd_dreambooth_extension, of kohya's scripts or kohya_ss, or of OneTrainer.",
        of_models.imported,
        takes_settings=True,
    )
    sub.add_argument("name", metavar="NAME")
    sub.add_argument("file", metavar="FILE|DIR", help="concepts_list.json, db_config.json, a dataset .toml, a folder")
    sub = add(
        "performance",
        preparing.performance,
        "Say which settings fit a card, and why; without a model, for every family and card.",
        of_models.performance,
        takes_settings=True,
    )
    sub.add_argument("name", metavar="NAME", nargs="?", help="a model; its own settings are taken")
    sub.add_argument("--card", metavar="8GB", help="the card's memory (default: this machine's)")
    sub.add_argument("--apply", action="store_true", help="make it the model's own settings, as the page's button does")
    sub = add("tokens", preparing.tokens, "Say what the words of a prompt are to a model.", of_models.tokens)
    sub.add_argument("name", metavar="NAME")
    sub.add_argument("prompt", metavar="PROMPT", help="such as 'sks dog'")
    sub.add_argument(
        "--candidates",
        type=int,
        default=short_jobs.CANDIDATES,
        metavar="N",
        help=f"rare words to try (default {short_jobs.CANDIDATES})",
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
        ("undo", preparing.undo, "Put back the settings from before the last import.", of_models.undone),
        (
            "notice",
            preparing.send_notice,
            "Tell the model's webhook something now, to see that it comes.",
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
        "Move a model's folder to the trash beside the models; what it wrote stays.",
        of_models.deleted,
    ).add_argument("name", metavar="NAME")


def _add_training(add: Callable[..., Any]) -> None:
    for name, command, meaning, show in (
        (
            "class-images",
            commands.class_images,
            "Make the class pictures that a run will need.",
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
        ("save", commands.save, "Have a running run write what it has learned by now."),
        ("preview", commands.preview, "Have a running run draw its previews now."),
    ):
        add(name, command, meaning, of_runs.asked).add_argument("run", metavar="RUN")
    sub = add(
        "resume",
        commands.resume,
        "Go on with a run that was paused or lost; settings that may change then are flags, such as "
        "--intervals.max_train_steps 3000.",
        of_runs.finished,
        takes_settings=True,
        presets=False,
    )
    sub.add_argument("run", metavar="RUN")
    sub.add_argument(
        "--model-settings", action="store_true", help="take the model's own settings where they may change then"
    )
    sub.add_argument("--from-step", type=int, metavar="N", help="go back to the state that was saved after this step")
    sub = add("stop", commands.stop, "End a run and keep what it has learned.", of_runs.asked)
    sub.add_argument("run", metavar="RUN")
    sub.add_argument(
        "--discard",
        action="store_true",
        help="write no result and forget its states; results and previews that it has written already stay",
    )


def _add_learning_on(add: Callable[..., Any]) -> None:
    sub = add(
        "learn-on",
        preparing.learn_on,
        "Have the next run begin with a result; of a checkpoint make a new model like this one.",
        of_models.told,
    )
    sub.add_argument("name", metavar="NAME")
    sub.add_argument("file", metavar="FILE", nargs="?", help="what a run of the model wrote (default: the newest)")


def _add_report(add: Callable[..., Any]) -> None:
    sub = add(
        "report",
        results.report,
        "Collect what tells of a run that went wrong in one .zip file: no pictures, no secrets.",
        lambda result: f"Written: {result['path']}",
    )
    sub.add_argument("run", metavar="RUN")
    sub.add_argument("--to", metavar="FILE", help="a new file (default: NAME-3-report.zip, here)")


def _add_results(add: Callable[..., Any]) -> None:
    _add_generate(add)
    _add_sheet(add)
    sub = add("export", results.export, "Write the newest result as a file or a Diffusers folder.", of_runs.exported)
    sub.add_argument("name", metavar="NAME")
    sub.add_argument(
        "--to",
        metavar="FILE|DIR",
        help="a .safetensors or .ckpt file (of an embedding .safetensors or .pt), or a new folder; --from-step can do "
        "without, as the run itself would",
    )
    merge = "put what was learned into the checkpoint it was trained from, at this weight"
    sub.add_argument("--merge", type=float, metavar="WEIGHT", help=merge)
    onto = "put it into this other checkpoint of the same family instead, also one for inpainting"
    sub.add_argument("--onto", metavar="FILE|DIR", help=onto)
    rank = "write it as a LoRA of this rank: extracted from a fully trained model, or a LoRA made smaller"
    sub.add_argument("--rank", type=int, metavar="N", help=rank)
    _add_state(sub)
    sub.add_argument("--half", action="store_true", help="in half precision (default: as the file is)")
    _add_weights(sub)
    sub = add(
        "delete-result",
        results.delete,
        "Delete a file that a run wrote, with what goes with it, for good.",
        lambda result: str(result["done"]),
    )
    sub.add_argument("name", metavar="NAME")
    sub.add_argument("file", metavar="FILE", help="its name or path, as runs has it")


def _add_generate(add: Callable[..., Any]) -> None:
    sub = add("generate", results.generate, "Draw pictures with the newest result of a model.", of_runs.pictures)
    sub.add_argument("name", metavar="NAME")
    sub.add_argument("--prompt", help="what to draw; a result of Imagic has a prompt of its own")
    sub.add_argument("--eta", type=float, help="of a result of Imagic: 0 draws the picture, 1 the prompt (0.7)")
    sub.add_argument("--count", type=int, default=_default("count"))
    sub.add_argument(
        "--batch",
        type=int,
        default=_default("batch"),
        help="pictures drawn at a time (0: as many as there is room for)",
    )
    sub.add_argument("--lora-weight", type=float, default=_default("lora_weight"))
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
        "--lora-weights", type=float, nargs="+", default=[0.6, 0.8, 1.0], metavar="W", help="the columns (0.6 0.8 1)"
    )
    _add_drawing(sub)


def _default(name: str) -> Any:
    """Of what is said about pictures to draw."""
    return short_jobs.DRAWING[name][0]


def _add_drawing(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--negative", default="", metavar="PROMPT")
    sub.add_argument("--seed", type=int, default=_default("seed"), help="of the first picture; -1 takes any")
    sub.add_argument("--steps", type=int, default=_default("steps"))
    sub.add_argument("--cfg", type=float, default=_default("cfg"))
    sub.add_argument("--width", type=int, default=_default("width"), help="pixels; 0 takes the model's own size")
    sub.add_argument("--height", type=int, default=_default("height"))
    names = ", ".join(short_jobs.SCHEDULER.choices)
    default = short_jobs.SCHEDULER.default
    sub.add_argument("--scheduler", metavar="NAME", default=default, help=f"{names} (default: {default})")
    sub.add_argument("--out", metavar="DIR", help="where to (default: the model's folder)")


def _add_state(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--from-step", type=int, metavar="N", help="what a run had learned by its state after this step")
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
