"""What the extension adds to a WebUI's start and memory: `python -m tests.host.cost DIR [STARTS]`, with any Python.

The WebUI is started with and without the extension in turn, so that a busy machine slows both. Told are the seconds
until it answers, the CPU's seconds (which a busy machine changes little), and the memory of its process.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.host.real import WebUI  # noqa: E402

QUIET_SECONDS = 5.0


def measure(webui: WebUI) -> dict[str, float]:
    """One start."""
    seconds = webui.start("--skip-load-model-at-start")
    time.sleep(QUIET_SECONDS)
    assert webui.process
    process = Path(f"/proc/{webui.process.pid}")
    fields = (process / "stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    own = sum(
        int(line.split()[1])
        for line in (process / "smaps_rollup").read_text().splitlines()
        if line.startswith(("Private_Clean", "Private_Dirty"))
    )
    resident = int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    webui.kill()
    return {
        "seconds": seconds,
        "cpu_seconds": ticks / os.sysconf("SC_CLK_TCK"),
        "own_mb": own / 1000,
        "resident_mb": resident / 1e6,
    }


def main(folder: Path, starts: int) -> None:
    with tempfile.TemporaryDirectory(prefix="webui-cost-") as place:
        measured: dict[str, list[dict[str, float]]] = {"without": [], "with": []}
        hosts = {}
        for kind in measured:
            data = Path(place) / kind
            (data / "extensions").mkdir(parents=True)
            (data / "models" / "Stable-diffusion").mkdir(parents=True)
            hosts[kind] = WebUI(folder, str(folder / "venv/bin/python"), data)
        (Path(place) / "with" / "extensions" / "dreambooth").symlink_to(ROOT)
        for number in range(starts + 1):
            for kind, host in hosts.items():
                said = measure(host)
                if number:  # the first only warms the disk
                    measured[kind].append(said)
                print(kind, {key: round(value, 2) for key, value in said.items()}, file=sys.stderr)
        middle = {
            kind: {key: statistics.median(one[key] for one in all_of) for key in all_of[0]}
            for kind, all_of in measured.items()
        }
        added = {key: middle["with"][key] - middle["without"][key] for key in middle["with"]}
        told = {**middle, "added": added}
        print(json.dumps({kind: {key: round(value, 2) for key, value in one.items()} for kind, one in told.items()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), int(sys.argv[2]) if len(sys.argv) > 2 else 5)
