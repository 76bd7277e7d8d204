"""One training run: its configuration, its parts, and what it leaves behind."""
