"""The audit and everything that shows results: page, charts, terminal."""
