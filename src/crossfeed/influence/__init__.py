"""Influence of curation, its direction, paths and thresholds, and what finite samples do."""
