"""Figures of papers, redone with the library and held against the published numbers."""
