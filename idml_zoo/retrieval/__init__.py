"""Nearest neighbours, exactly."""
