"""From result files and embeddings to tables, cards, pictures and pages."""
