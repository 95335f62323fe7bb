"""The policy: building and loading models, token log-probabilities, batches, the optimizer."""
