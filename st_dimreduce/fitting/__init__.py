"""Fitting: from a summary of embeddings, and pairs, to a head."""
