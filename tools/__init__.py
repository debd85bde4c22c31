"""How the shipped weights were made; not in the wheel."""
