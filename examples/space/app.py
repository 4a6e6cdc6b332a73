"""The search page as a Hugging Face Space; the reduced model and the texts are in the folder of this file."""

from __future__ import annotations

import os
from pathlib import Path

from st_dimreduce.apps.search_page import Corpus, make_app
from st_dimreduce.texts import read_texts

HERE = Path(__file__).parent
model = os.environ.get("MODEL", str(HERE / "model"))
texts = os.environ.get("TEXTS", str(HERE / "texts.txt"))
# A Space is public under a host name that Hugging Face chooses, so every host name is allowed; huggingface.co shows it
# in a frame.
app = make_app(
    Corpus(model, read_texts(texts)), allowed_hosts=["*"], frame_ancestors="https://huggingface.co https://*.hf.space"
)
