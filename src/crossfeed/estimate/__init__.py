"""Influence estimated from samples of models as they are now, without retraining them."""
