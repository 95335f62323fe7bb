"""Traces: completions with all that is known of them, filtered with an exact ledger, checked, exported, imported."""
