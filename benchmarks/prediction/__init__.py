"""Predicted influence against retraining, on many small ecosystems of neural networks."""
