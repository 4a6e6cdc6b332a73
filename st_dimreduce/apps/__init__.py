"""Applications: the demo, the corpus of docstrings and the search page."""
