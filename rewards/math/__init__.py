"""The math verifier: reads an answer out of a completion and decides whether it equals the reference."""
