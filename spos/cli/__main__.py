"""`python -m spos.cli` is the `spos` command."""

from spos.cli import main

main()
