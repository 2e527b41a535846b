"""Run by the WebUI at every start: compares a stamp, and starts the engine's set-up where it is missing.

It installs nothing into the WebUI's Python and waits for nothing; the tab shows how the set-up goes.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

try:
    if sys.version_info < (3, 10):
        said = "Dreambooth: this WebUI's Python is {}.{}, but it needs 3.10 or newer.".format(*sys.version_info)
    else:
        from dreambooth.service import installation

        said = installation.on_start()
except Exception as error:  # noqa: BLE001  (whatever is wrong here, the WebUI starts)
    said = f"Dreambooth: the engine cannot be set up ({type(error).__name__}: {error})."
if said:
    codes = sys.stdout.encoding  # on Windows it may lack letters of a folder's name; no name ends this with an error
    print(said.encode(codes, "backslashreplace").decode(codes))
