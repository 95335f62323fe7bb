"""Who changes a policy: forward pass and loss, gradients, precision, optimizer, states. Stages hold a ``Trainer``."""
