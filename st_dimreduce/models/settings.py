"""Settings of a model that run code, fetch files or open those of others: refused before anything is loaded.

Readers pass many settings on as arguments of functions. A list of the harmless ones would refuse every model that is
newer than the list, so these are the harmful ones, as Transformers 5 and Sentence Transformers 6 use them. What a file
of settings names must lie in the model's folder, and its weights are read as weights whatever it says.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path, PureWindowsPath
from typing import Any

from st_dimreduce.base_head import CONFIG
from st_dimreduce.errors import UserError
from st_dimreduce.untrusted import check_relative, printable, read_json, read_object, short

_LOAD = "if you trust it, load it yourself with SentenceTransformer(path) and give that model"
_MOST_TOKENIZER_BYTES = 64 * 2**20  # of a tokenizer.json: the largest known have half of that
_MOST = 2**20  # a number in the arguments of a tokenizer, which may pad to it
_SETTINGS = re.compile(r"(modules|special_tokens_map|([\w-]+_)?config[\w.]*)\.json")
_SENTENCE_CONFIG = re.compile(r"sentence_[\w-]+_config\.json")  # of a Transformer, in every version
_TOKENIZER_CONFIG = "tokenizer_config.json"

# Keys that are refused in every file of settings, unless they are empty, null or false.
_REFUSED = {
    "adapter_kwargs",  # an adapter for another model
    "allow_all_kernels",
    "audio_tokenizer_name_or_path",  # another model
    "class_info_file",  # of a data set on the Hub
    "configuration_files",  # others than those that are checked here
    "gguf_file",
    "init_inputs",  # files of a tokenizer
    "kernel_config",
    "mecab_option",  # a command line
    "offload_folder",  # written to
    "repo_path",
    "tokenizer_name_or_path",
    "transformers_weights",
    "use_kernels",
    "use_pretrained_backbone",
    "use_timm_backbone",
}
_QUANTIZERS = {"eetq", "fbgemm_fp8", "fp8", "gguf", "metal", "mxfp4", "mxfp8", "nvfp4"}  # they fetch kernels
_IMPLEMENTATION = re.compile(r"(attn|experts)_implementation")  # for all of a model, or by its parts
_FETCHED = re.compile(r"(hf-hub|hf_hub|local-dir):|timm_")  # how timm is told to fetch a model, or asked for
_ARGUMENTS = re.compile(r"(model|config)_(kw)?args\.")  # which become settings of the transformer
_METHODS = re.compile(r"forward|(encode|extract|get)_\w+")

# Keys whose values some reader opens as a file or folder.
_OPENED = re.compile(
    r"vocab|merges|.*(?:_|^)(?:file|files|path|dir|directory|folder|spm)|.*name_or_path|.*_pretrained\w*"
)
# Keys whose values no reader opens in config.json and tokenizer_config.json: makers leave paths of their own there.
_LEFT_BEHIND = {"name_or_path", "_name_or_path", "special_tokens_map_file", "tokenizer_file"}
# Keys whose values, at every depth, are words or tokens.
_WORDS = re.compile(
    r"chat_template|prompts|architectures|added_tokens_decoder|id2label|label2id|never_split|stop_words|ngrams|words"
    r"|word_weights|.*_tokens?"
)


def check_settings(root: Path, folder: Path) -> None:
    """Check the files of settings in one folder of a model.

    Args:
        root: The model's folder.
        folder: That folder, or one in it.

    Raises:
        UserError: If a setting may harm; names file and key, and says what to do.
    """
    if not folder.is_dir():
        return
    for path in sorted(folder.glob("*.json")):
        if path.name == "adapter_config.json":
            raise UserError(
                f"{path} makes it an adapter for another model: merge the two (merge_and_unload) and save the result"
            )
        if _SENTENCE_CONFIG.fullmatch(path.name):
            _check_sentence_config(path, read_object(path))
        if path.name.startswith("tokenizer") and path.name != _TOKENIZER_CONFIG:
            _check_tokenizer(path)
        elif _SETTINGS.fullmatch(path.name) and path.name != "data_config.json":  # which nothing reads
            for name, key, value in walk(read_json(path)):
                _check_value(path, name, key, value)
                if isinstance(value, str):
                    _check_text(root.resolve(), path, key, value)


def _check_value(path: Path, name: str, key: str, value: Any) -> None:
    """Refuse a setting that runs code or fetches."""
    if key == "weights_only":
        harmful = value is not True and value is not None
    elif key in _REFUSED:
        harmful = bool(value)
    elif _IMPLEMENTATION.search(name):
        harmful = isinstance(value, str) and _is_fetched(value)
    elif key == "quantization_config":
        harmful = isinstance(value, dict) and str(value.get("quant_method")) in _QUANTIZERS
    elif _OPENED.fullmatch(key) and _SENTENCE_CONFIG.fullmatch(path.name):
        harmful = value is not None
    else:
        harmful = isinstance(value, str) and path.name == CONFIG and _FETCHED.match(value) is not None
    if harmful:
        setting = f"{printable(name):.200} to {short(value)}"
        raise UserError(f"{path} sets {setting}, which may run code or fetch files: take it out, or {_LOAD}")


def _is_fetched(implementation: str) -> bool:
    """Whether transformers would fetch this implementation of attention or experts from the Hub."""
    compiled = "flash" in implementation and find_spec("kernels") is not None  # where flash_attn is missing
    return "/" in implementation or (compiled and find_spec("flash_attn") is None)


def _check_sentence_config(path: Path, content: dict[str, Any]) -> None:
    """Check what is passed on to a transformer and its tokenizer, and called of it."""
    for name, key, value in walk(content):
        number = isinstance(value, int) and not isinstance(value, bool)
        if _ARGUMENTS.match(name) and (number or key in ("auto_map", "variant")):
            raise UserError(f"{path} sets {printable(name):.200} to {short(value)}: expected it in config.json")
        if number and abs(value) > _MOST and key not in ("model_max_length", "max_seq_length"):
            raise UserError(f"{path} sets {printable(name):.200} to {short(value)}: expected at most {_MOST:,}")
        if key == "method" and not (isinstance(value, str) and _METHODS.fullmatch(value)):
            raise UserError(f"{path} calls the method {short(value)}: expected forward, or {_LOAD}")


def _check_tokenizer(path: Path) -> None:
    """Check that the vocabulary is in the file: where its name stands instead, a reader opens that."""
    model = read_object(path, _MOST_TOKENIZER_BYTES).get("model")
    for key in ("vocab", "merges"):
        value = model.get(key) if isinstance(model, dict) else None
        if not isinstance(value, (dict, list, type(None))):
            raise UserError(f"{path} names the file {key} {short(value)}: expected what is in it")


def _check_text(home: Path, path: Path, key: str, text: str) -> None:
    """Refuse control characters, which readers print in warnings, and names of files outside the model's folder."""
    if re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", key + text):
        raise UserError(f"{path} holds control characters, in {short(key)} or {short(text)}: take them out")
    if _WORDS.fullmatch(key) or (key in _LEFT_BEHIND and path.name in (CONFIG, _TOKENIZER_CONFIG)):
        return
    opened = path.name != CONFIG and _OPENED.fullmatch(key) is not None
    if opened:
        check_relative(text, f"{path}, in {key},")
    # Any word may happen to be the name of a file here: it counts where it is absolute, or opened.
    if (opened or PureWindowsPath(text).anchor) and text and _is_outside(text, home):
        raise UserError(f"{path} names the file {key} {short(text)}: expected one inside the model's folder")


def _is_outside(text: str, home: Path) -> bool:
    try:
        return Path(text).exists() and not Path(os.path.realpath(text)).is_relative_to(home)
    except (OSError, ValueError):  # no file can have that name
        return False


def walk(content: Any) -> Iterator[tuple[str, str, Any]]:
    """Yield what is in JSON at every depth: its full name, its key and its value, and each key as a text of its own.

    What is in a list has the key of the list; what is below a key of words has that key.
    """
    rest = [("", "", content)]
    while rest:
        name, key, value = rest.pop()
        yield name, key, value
        if isinstance(value, dict):
            for inner, each in value.items():
                yield name, "", inner
                rest.append((f"{name}.{inner}".lstrip("."), key if _WORDS.fullmatch(key) else inner, each))
        elif isinstance(value, list):
            rest += [(name, "words" if key == "vocab" else key, each) for each in value]
