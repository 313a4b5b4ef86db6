"""The command line; the only place that imports when a command runs, so that --help is quick."""

from alignvec.cli.app import main

__all__ = ["main"]
