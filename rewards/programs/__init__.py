"""The code verifier: programs of completions run against tests, in the jail, in a pool, on Ray or a remote service."""
