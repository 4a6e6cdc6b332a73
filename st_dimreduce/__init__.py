"""Shrink sentence embeddings: one fitted layer behind any Sentence Transformers model."""

import lazy_loader

__version__ = "0.1.0"

# The public names are those of __init__.pyi, each imported when it is first asked for (PEP 562).
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
