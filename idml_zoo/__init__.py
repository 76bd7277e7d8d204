"""idml_zoo."""
