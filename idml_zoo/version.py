"""The version of idml_zoo, in one place."""

__version__ = "0.2.0"
