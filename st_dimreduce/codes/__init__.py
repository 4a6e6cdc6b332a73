"""Codes: how reduced vectors are stored and searched."""
