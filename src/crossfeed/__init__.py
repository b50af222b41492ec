"""Crossfeed: will more human curation of this model help it, do nothing, or backfire?"""

__version__ = "0.1.0"
