"""What transformers 5 writes in other words than transformers 4 and Text Embeddings Inference read, said in both.

Without these words an older reader fails on the tokenizer, or, worse, takes its own defaults for the positions and
gives other vectors without notice. Transformers 5 reads the result as it read the original.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def speak_older(folder: Path) -> None:
    """Add the older words to the ``config.json`` and ``tokenizer_config.json`` of a folder, where they exist."""
    for name, translate in (("config.json", _config), ("tokenizer_config.json", _tokenizer)):
        path = folder / name
        if path.exists():
            content = json.loads(path.read_text(encoding="utf-8"))
            path.write_text(json.dumps(content | translate(content), indent=2) + "\n", encoding="utf-8")


def missing_words(config: dict[str, Any], tokenizer: dict[str, Any]) -> list[str]:
    """Name the settings of the two files that an older reader would not find or not understand."""
    words = {**_config(config), **_tokenizer(tokenizer)}
    return [name for name, value in words.items() if {**config, **tokenizer}.get(name) != value]


def _config(config: dict[str, Any]) -> dict[str, Any]:
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict):
        return {}
    layers = {name: rope.get(f"{name}_attention") for name in ("full", "sliding")}
    if all(isinstance(layer, dict) for layer in layers.values()):
        return _layered(str(config.get("model_type")), **{name: dict(layer or {}) for name, layer in layers.items()})
    words = {name: rope[name] for name in ("rope_theta", "partial_rotary_factor") if name in rope}
    return words | ({"rope_scaling": rope} if rope.get("rope_type", "default") != "default" else {})


def _layered(model_type: str, full: dict[str, Any], sliding: dict[str, Any]) -> dict[str, Any]:
    names = (
        ("global_rope_theta", "local_rope_theta") if "bert" in model_type else ("rope_theta", "rope_local_base_freq")
    )
    words = dict(zip(names, (full.get("rope_theta"), sliding.get("rope_theta")), strict=True))
    words |= {"rope_scaling": full} if full.get("rope_type", "default") != "default" else {}
    return {name: value for name, value in words.items() if value is not None}


def _tokenizer(config: dict[str, Any]) -> dict[str, Any]:
    words: dict[str, Any] = {}
    if config.get("tokenizer_class") == "TokenizersBackend":
        words["tokenizer_class"] = "PreTrainedTokenizerFast"
        # Named, as the older class gives token_type_ids too where nothing is said, which not every model takes.
        words["model_input_names"] = config.get("model_input_names", ["input_ids", "attention_mask"])
    if isinstance(tokens := config.get("extra_special_tokens"), list):
        words |= {"additional_special_tokens": tokens, "extra_special_tokens": {}}
    return words
