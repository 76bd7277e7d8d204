"""What confidence is worth: fits the default coefficients, measures them, and makes the tables of their page."""
