"""The command line: `spos demo | train | search | retrain | deploy | report | info`."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the `spos` command."""
    from spos.cli.app import app

    try:
        app(prog_name="spos")
    except KeyboardInterrupt:  # before a command has begun; later ones say how to go on
        sys.exit(130)
