"""Settings that transformers 5 saves differently from transformers 4, written in both forms.

Without the old form a reader with transformers 4, or Text Embeddings Inference, fails on the tokenizer or, worse,
takes its own defaults for the positions and gives different vectors without notice. Transformers 5 reads a folder with
both forms as it read the original.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from st_dimreduce.files import write_json
from st_dimreduce.untrusted import read_object


def add_old_settings(folder: Path) -> None:
    """Add the settings that transformers 4 reads to ``config.json`` and ``tokenizer_config.json``, where they exist."""
    for name, old_settings in (("config.json", _config), ("tokenizer_config.json", _tokenizer)):
        path = folder / name
        if path.exists():
            content = read_object(path)
            write_json(path, content | old_settings(content))


def _config(config: dict[str, Any]) -> dict[str, Any]:
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict):
        return {}
    full, sliding = rope.get("full_attention"), rope.get("sliding_attention")
    if isinstance(full, dict) and isinstance(sliding, dict):
        return _layered(str(config.get("model_type")), full, sliding)
    settings = {name: rope[name] for name in ("rope_theta", "partial_rotary_factor") if name in rope}
    return settings | _scaling(rope)


def _layered(model_type: str, full: dict[str, Any], sliding: dict[str, Any]) -> dict[str, Any]:
    if "bert" in model_type:
        full_name, sliding_name = "global_rope_theta", "local_rope_theta"
    else:
        full_name, sliding_name = "rope_theta", "rope_local_base_freq"
    settings = {full_name: full.get("rope_theta"), sliding_name: sliding.get("rope_theta")} | _scaling(full)
    return {name: value for name, value in settings.items() if value is not None}


def _scaling(rope: dict[str, Any]) -> dict[str, Any]:
    return {"rope_scaling": rope} if rope.get("rope_type", "default") != "default" else {}


def _tokenizer(config: dict[str, Any]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    if config.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        # Named, because by default the older class also returns token_type_ids, which not every model takes.
        settings["model_input_names"] = config.get("model_input_names", ["input_ids", "attention_mask"])
    if isinstance(tokens := config.get("extra_special_tokens"), list):
        settings |= {"additional_special_tokens": tokens, "extra_special_tokens": {}}
    return settings
