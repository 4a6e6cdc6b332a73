"""Stored vectors: reading, fitting on and reducing them, a batch at a time."""
