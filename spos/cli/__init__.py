"""The command line: `spos demo | train | search | retrain | report | info`."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Entry point of the `spos` command."""
    # Read when torch brings the OpenMP runtime in. By default its threads spin while they wait, which on a machine that
    # does anything else makes two threads many times slower than one.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from spos.cli.app import app

    try:
        app(prog_name="spos")
    except KeyboardInterrupt:  # before a command has begun; later ones say how to go on
        sys.exit(130)
