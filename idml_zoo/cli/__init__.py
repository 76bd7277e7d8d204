"""The command ``idml-zoo``."""
