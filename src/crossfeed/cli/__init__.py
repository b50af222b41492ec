"""The command ``crossfeed``."""

from crossfeed.cli.app import main

__all__ = ["main"]
