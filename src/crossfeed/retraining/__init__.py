"""The retraining loop of real networks: draw, generate, curate, train, evaluate, round after round."""
