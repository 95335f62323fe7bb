"""The run directory: layout, manifest, checkpoints. Its format is a contract with users."""
