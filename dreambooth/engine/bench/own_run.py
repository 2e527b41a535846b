"""A training job under watch: `python -m dreambooth.engine.bench.own_run ABOUT`, ABOUT a JSON file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from dreambooth.engine import __main__ as engine
from dreambooth.engine.bench import convolutions, watch
from dreambooth.engine.process import lazy_imports


def main(about_file: Path) -> int:
    lazy_imports.install()  # as the engine does, before the watch takes hold of diffusers
    about = json.loads(about_file.read_text(encoding="utf-8"))
    watched = watch.begin(about)
    if ways := about.get("convolutions"):
        convolutions.install(ways)
    from dreambooth.engine.tracing.graph import Graph
    from dreambooth.engine.tracing.program import Program

    Program.__call__ = watched.timed(watched.counted(Program.__call__, "programs"))  # type: ignore[method-assign]
    Graph.__call__ = watched.timed(watched.counted(Graph.__call__, "replays"))  # type: ignore[method-assign]
    code = engine.main([about["job"]])
    watch.tell(watched, Path(about["out"]))
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
