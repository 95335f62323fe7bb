"""The run directory: layout, manifest, metrics, checkpoints. Its format is a contract with users (docs/run_directory.md)."""
