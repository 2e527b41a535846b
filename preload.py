"""Flags that the WebUI knows because of this extension. Imports nothing that is not there, and changes nothing."""

from pathlib import Path

PROJECTS, LORAS = "--dreambooth-models-path", "--lora-models-path"


def preload(parser):
    if _has_namesake():
        # Else the second of the two would lose its other flags, too. argparse asks the group that it has for all flags.
        for asked in (parser, getattr(parser, "_optionals", parser)):
            asked.conflict_handler = "resolve"
    parser.add_argument(
        PROJECTS,
        type=str,
        metavar="DIR",
        default=None,
        help="where the models that are being taught lie (default: dreambooth in the models folder)",
    )
    parser.add_argument(
        LORAS,
        type=str,
        metavar="DIR",
        default=None,
        help="where trained LoRAs are written (default: the WebUI's own LoRA folder)",
    )


def _has_namesake():
    """Whether another extension beside this one has one of the flags, such as the one whose flags they were."""
    own = Path(__file__).absolute()
    try:
        others = [file.read_bytes() for file in own.parents[1].glob("*/preload.py") if file.parent != own.parent]
    except OSError:
        return False
    return any(flag.encode() in text for flag in (PROJECTS, LORAS) for text in others)
