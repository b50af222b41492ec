"""The run folder: every number, sample, lineage and checkpoint of a run, whole or not at all."""
