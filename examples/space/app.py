"""The search page as a Hugging Face Space: the reduced model and the texts lie beside this file."""

from __future__ import annotations

import os
from pathlib import Path

from st_dimreduce.apps.search_page import Corpus, make_app
from st_dimreduce.texts import read_texts

HERE = Path(__file__).parent
model = os.environ.get("MODEL", str(HERE / "model"))
texts = os.environ.get("TEXTS", str(HERE / "texts.txt"))
# The Space is public under a name that Hugging Face gives it: every host may ask.
app = make_app(Corpus(model, read_texts(texts)), allowed_hosts=["*"])
