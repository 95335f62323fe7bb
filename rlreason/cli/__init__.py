"""The command line, a file for each group of commands."""

from rlreason.cli.commands import app, main

__all__ = ["app", "main"]
