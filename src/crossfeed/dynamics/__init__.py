"""The compiled ecosystem, retraining rounds, stable points, certificates, runs and sweeps."""
