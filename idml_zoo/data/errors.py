"""What goes wrong with data."""


class DataError(ValueError):
    """Data that is missing, broken or not what it claims to be; the message says what, expected, and remedy."""
