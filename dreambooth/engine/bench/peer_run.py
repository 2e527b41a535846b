"""A training script of others under watch: `python -m dreambooth.engine.bench.peer_run ABOUT`, ABOUT a JSON file.

Its packages are those of the Python that starts it, so nothing is imported here that is not there for the script.
torchvision, of which these scripts use five transforms, need not be there: a stand-in on Pillow does the same work.
"""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dreambooth.engine.bench import watch
from dreambooth.engine.bench.versions import versions


def main(about_file: Path) -> None:
    about, watched = json.loads(about_file.read_text(encoding="utf-8")), []
    run(about, lambda: watched.append(watch.begin(about)))
    watch.tell(watched[0], Path(about["out"]), versions=versions())


def run(about: dict[str, Any], begin_watch: Callable[[], None]) -> None:
    import diffusers.utils
    import transformers

    diffusers.utils.check_min_version = lambda version: None  # the scripts ask for the version of their own checkout
    sys.path.insert(0, str(Path(about["script"]).parent))  # where Python looks first for what a script imports
    if not transformers.utils.is_torchvision_available():  # asked once and remembered, so nobody else takes it for real
        from dreambooth.engine.bench import torchvision_stand_in

        torchvision_stand_in.install()
    begin_watch()
    sys.argv = [about["script"], *about["arguments"]]
    runpy.run_path(about["script"], run_name="__main__")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
