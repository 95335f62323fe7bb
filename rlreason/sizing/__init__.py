"""How much memory, computing and money a model asks for: formulas, and what torch itself counts on empty models."""
