"""`python -m spos` is the `spos` command."""

from spos.cli import main

main()
