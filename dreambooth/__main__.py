"""The command line: `python -m dreambooth COMMAND`. Runs on any Python 3.10+ with only the standard library."""

from __future__ import annotations

import sys

if sys.version_info < (3, 10):
    sys.exit("Python 3.10 or newer is needed (this is %d.%d)." % sys.version_info[:2])

if __name__ == "__main__":
    try:
        from dreambooth.ui.command_line import main

        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:  # before there was anything to interrupt
        sys.exit(130)
