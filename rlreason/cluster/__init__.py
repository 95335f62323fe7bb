"""Ray: which one a run is in, and groups of actors that are asked all at once."""
