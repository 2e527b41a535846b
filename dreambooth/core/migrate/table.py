"""What became of other programs' settings, as tables for people:

python -m dreambooth.core.migrate.table > docs/coming-from.md
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from dreambooth.core.migrate import diffusers_scripts, onetrainer, sd_scripts
from dreambooth.core.migrate.control import Control
from dreambooth.core.migrate.diffusers_scripts import controls as of_diffusers
from dreambooth.core.migrate.onetrainer import controls as of_onetrainer
from dreambooth.core.migrate.predecessor.controls import CONTROLS
from dreambooth.core.migrate.sd_scripts import controls as of_sd_scripts
from dreambooth.core.schema import leaves
from dreambooth.core.settings import Settings

_HEAD = """# Coming from the old extension, kohya's scripts, diffusers' scripts or OneTrainer

Every control of sd_dreambooth_extension whose name, place or meaning differs here, or that is not here, by where it was
there; below it the same of [kohya's scripts](#kohyas-scripts-and-kohya_ss), of [diffusers'](#diffusers-scripts) and of
[OneTrainer](#onetrainer). What is not listed is called the same and means the same. On the page *Find a setting*
(Settings) knows these names too, and says of the old extension's controls where they are that are no settings here.

`python -m dreambooth import NAME .../models/dreambooth/OLD/db_config.json`, or *Import settings* on the Model tab,
takes over all that is the same and says of each key what became of it, in the words of this table.
"""
_SD_SCRIPTS = """# Kohya's scripts and kohya_ss

`import` reads the `.toml` of `--config_file`, flat or in sections, a text or script file with a command that starts one
of the scripts, and the `.json` that kohya_ss saves, whose names are the scripts' own but for a few. Folders such as
`10_sks dog` in `train_data_dir` become concepts. Of a `--config_file` and of a command what it does not say is what the
scripts take for it; of a file of kohya_ss only what it says is taken.
"""
_DIFFUSERS = """# diffusers' scripts

`import` reads a text or script file with a command that starts `train_dreambooth.py`, `train_dreambooth_lora.py` or
`train_dreambooth_lora_sdxl.py`. What it does not say is what the script takes for it.
"""
_ONETRAINER = """# OneTrainer

`import` reads its presets and saved configurations (`.json`), of all versions, and its lists of concepts.
"""
_PRESSED = re.compile(r'"([^"]+)"')  # what the page calls so
_LABELS = {leaf.key: leaf.spec.label for leaf in leaves(Settings)}
_KEY = re.compile("|".join(sorted(map(re.escape, _LABELS), key=len, reverse=True)))
_TITLES = ("| there | here | what differs |", "|---|---|---|")


def markdown() -> str:
    lines = [_HEAD]
    for section, some in CONTROLS.items():
        lines += [f"## {section}", "", *_TITLES, *(_row(one, one.label) for one in some), ""]
    for head, same, sections in (
        (_SD_SCRIPTS, sd_scripts.SAME, of_sd_scripts.CONTROLS),
        (_DIFFUSERS, diffusers_scripts.SAME, of_diffusers.CONTROLS),
        (_ONETRAINER, onetrainer.SAME, of_onetrainer.CONTROLS),
    ):
        lines += [head, *_by_keys(same, sections)]
    return "\n".join(lines).rstrip() + "\n"


def _by_keys(same: Mapping[str, str], sections: Mapping[str, tuple[Control, ...]]) -> list[str]:
    renamed = [
        Control(key, "another name", (key,), (ours,))
        for key, ours in same.items()
        if key not in (ours, ours.split(".")[-1])
        and not any(key in one.keys for some in sections.values() for one in some)
    ]
    lines: list[str] = []
    for section, some in [*sections.items(), ("The same under another name", renamed)]:
        lines += [f"## {section}", "", *_TITLES]
        lines += [_row(one, ", ".join(f"`{key}`" for key in one.keys)) for one in some]
        lines += [""]
    return lines


def _row(control: Control, label: str) -> str:
    here = [f"{_LABELS[key]} (`{key}`)" for key in control.ours] + [control.place] * bool(control.place)
    differs = _KEY.sub(r"`\g<0>`", control.why)
    return _PRESSED.sub(r"*\1*", f"| {label} | {', '.join(here) or '–'} | {differs} |")


if __name__ == "__main__":
    print(markdown(), end="")
