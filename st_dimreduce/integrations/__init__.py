"""Integrations: one small file per framework or store."""
