"""What the settings in a model's folder may say: everything else is refused before a reader acts on it.

Readers pass on many settings as arguments of functions. Some of those run what they are given, fetch it from elsewhere,
or open a file by the name in them, so only what is known to be harmless may pass. Names of files that their makers left
behind, which no reader opens, do not harm.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path, PureWindowsPath
from typing import Any

from st_dimreduce.base_head import CONFIG
from st_dimreduce.errors import UserError
from st_dimreduce.untrusted import check_relative, read_json, read_object, short

SENTENCE_CONFIGS = re.compile(r"sentence_[\w-]+_config\.json")  # of a Transformer, in every version
_MOST_BYTES = 64 * 2**20  # of a tokenizer.json: the largest known have half of that
_LOAD = "if you trust it, load it yourself with SentenceTransformer(path) and give that model"
_ARGUMENTS = {  # by the names of every version
    "model_args": "model",
    "model_kwargs": "model",
    "tokenizer_args": "processor",
    "processor_kwargs": "processor",
    "config_args": "config",
    "config_kwargs": "config",
    "processing_kwargs": "processing",
}
_SENTENCE_KEYS = {
    *_ARGUMENTS,
    "max_seq_length",
    "do_lower_case",
    "transformer_task",
    "modality_config",
    "module_output_name",
    "unpad_inputs",
    "query_length",
    "document_length",
    "query_expansion",
    "__version__",
}
_METHODS = re.compile(r"forward|get_(text|image|audio|video|multimodal)_features")
_DTYPES = re.compile(r"(torch\.)?(auto|float(16|32|64)|bfloat16|half|float|double)")
_ATTENTIONS = {"eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3", "flash_attention_4"}
_EXPERTS = {"eager", "batched_mm", "grouped_mm"}
_QUANTIZERS = {"bitsandbytes", "gptq", "awq", "compressed-tensors"}  # the others may fetch code
_SIDES = {"left", "right"}
_FETCHED = re.compile(r"(hf-hub|hf_hub|local-dir):|timm_")  # how timm is told to fetch a model, or asked for


def _plain(value: Any) -> bool:
    """Whether a value is a switch or a number."""
    return value is None or isinstance(value, (bool, int, float))


def _length(value: Any) -> bool:
    return value is None or (isinstance(value, int) and 0 < value <= 2**20) or isinstance(value, bool)


def _word(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[A-Za-z_]{0,30}", value) is not None


def _side(value: Any) -> bool:
    return value in _SIDES if isinstance(value, str) else value is None


def _dtype(value: Any) -> bool:
    return value is None or (isinstance(value, str) and _DTYPES.fullmatch(value) is not None)


def _attention(value: Any) -> bool:
    """Whether this attention, for all of a model or by its parts, is in the packages that are installed."""
    if isinstance(value, dict):
        return all(_attention(each) for each in value.values())
    if value is None:
        return True
    # Where flash_attn is missing and kernels is not, transformers fetches a compiled one from the Hub.
    fetched = str(value).startswith("flash_") and find_spec("kernels") is not None and find_spec("flash_attn") is None
    return isinstance(value, str) and value.removeprefix("paged|") in _ATTENTIONS and not fetched


def _experts(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_experts(each) for each in value.values())
    return value is None or (isinstance(value, str) and value in _EXPERTS)


def _padding(value: Any) -> bool:
    return _plain(value) or value in ("longest", "max_length", "do_not_pad")


def _truncation(value: Any) -> bool:
    return _plain(value) or value in ("longest_first", "only_first", "only_second", "do_not_truncate")


def _sizes(value: Any) -> bool:
    return _plain(value) or _word(value) or (isinstance(value, dict) and all(_plain(each) for each in value.values()))


def _token(value: Any) -> bool:
    return value is None or isinstance(value, str)


_Rule = Callable[[Any], bool]
_INERT: dict[str, _Rule] = {"trust_remote_code": _plain}  # which readers take from the user alone, and drop here
_TEXT: dict[str, _Rule] = {
    "add_special_tokens": _plain,
    "max_length": _length,
    "pad_to_multiple_of": _length,
    "padding": _padding,
    "padding_side": _side,
    "return_attention_mask": _plain,
    "return_tensors": _word,
    "return_token_type_ids": _plain,
    "stride": _plain,
    "truncation": _truncation,
    "truncation_side": _side,
}
_RULES: dict[str, dict[str, _Rule]] = {
    "model": _INERT
    | {"dtype": _dtype, "torch_dtype": _dtype, "attn_implementation": _attention}
    | dict.fromkeys(("add_pooling_layer", "is_causal", "low_cpu_mem_usage", "output_attentions"), _plain)
    | dict.fromkeys(("output_hidden_states", "return_dict", "use_bidirectional_attention", "use_cache"), _plain),
    "config": _INERT
    | {"dtype": _dtype, "torch_dtype": _dtype, "attn_implementation": _attention}
    | dict.fromkeys(("is_causal", "is_decoder", "output_attentions", "output_hidden_states", "return_dict"), _plain)
    | dict.fromkeys(("use_bidirectional_attention", "use_cache"), _plain),
    "processor": _INERT
    | {key: _TEXT[key] for key in ("max_length", "padding", "padding_side", "truncation", "truncation_side")}
    | dict.fromkeys(("model_max_length", "use_fast", "do_lower_case", "strip_accents", "legacy"), _plain)
    | dict.fromkeys(("add_prefix_space", "add_bos_token", "add_eos_token", "tokenize_chinese_chars"), _plain)
    | dict.fromkeys(("clean_up_tokenization_spaces", "fix_mistral_regex", "split_special_tokens"), _plain)
    | dict.fromkeys(("min_pixels", "max_pixels"), _plain)
    | dict.fromkeys(("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token"), _token)
    | {"mask_token": _token, "chat_template": _token},
    "text": _TEXT,
    "common": _TEXT,
    "chat_template": _TEXT
    | dict.fromkeys(("add_generation_prompt", "continue_final_message", "enable_thinking", "tokenize"), _plain)
    | {"restore_suffix": _plain, "load_audio_from_video": _plain},
}
# Keys of settings that some reader opens as a file, or as a folder.
_OPENED = re.compile(r"gguf_file|.*(?:_|^)(?:file|files|path|dir|directory|folder|spm)|.*name_or_path|.*_pretrained\w*")
# Keys whose values no reader opens, in config.json and in tokenizer_config.json: makers leave paths of theirs there.
_LEFT_BEHIND = {"name_or_path", "_name_or_path", "special_tokens_map_file", "tokenizer_file"}
_WORDS = {"chat_template", "prompts", "architectures", "added_tokens_decoder", "id2label", "label2id", "never_split"}
_WORDS |= {"stop_words", "ngrams", "word_weights", "words"}  # of tokenizers by words
_TOKENS = re.compile(r"_tokens?$")
_LIBRARIES = ("sp_model_kwargs", "mecab_kwargs", "sudachi_kwargs", "jumanpp_kwargs")  # options of other libraries


def check_settings(root: Path, folder: Path, *, own_code: bool = False) -> None:
    """Check the settings in one folder of a model.

    Args:
        root: The model's folder.
        folder: That folder, or one in it.
        own_code: Whether the user trusts code that comes with the model, whose settings are not known here.

    Raises:
        ValueError: If a setting is not known to be harmless; names file and key, and says what to do.
    """
    if not folder.is_dir():
        return
    with os.scandir(folder) as files:
        names = sorted(file.name for file in files if file.name.endswith(".json"))
    for name in names:
        path = folder / name
        if name == "adapter_config.json":
            raise UserError(
                f"{path} makes it an adapter for another model: merge the two (merge_and_unload) and save the result"
            )
        if SENTENCE_CONFIGS.fullmatch(name):
            _check_sentence_config(root, path, read_object(path), own_code)
        elif name == "special_tokens_map.json":
            _check_special_tokens(path, read_object(path))
        elif name == "tokenizer_config.json":
            content = read_object(path)
            _check_tokenizer_config(path, content)
            _check_files(root, path, content)
        elif name.startswith("tokenizer") and name.endswith(".json"):
            _check_tokenizer(path)
        elif name == "modules.json":
            _check_letters(path, read_json(path))
        elif re.fullmatch(r"(\w+_)?config\w*\.json", name) and name != "data_config.json":  # which nothing reads
            content = read_object(path)
            _check_config(path, content)
            _check_letters(path, content)
            _check_files(root, path, content)


def _check_sentence_config(root: Path, path: Path, content: dict[str, Any], own_code: bool) -> None:
    _check_letters(path, content)
    for key, value in content.items():
        if key in _ARGUMENTS:
            _check_arguments(path, key, value, own_code)
        elif key not in _SENTENCE_KEYS and not own_code:
            raise UserError(f"{path} sets {short(key)}, which no Transformer needs: take it out, or {_LOAD}")
    _check_files(root, path, content)
    modalities = content.get("modality_config") or {}
    for mode in modalities.values() if isinstance(modalities, dict) else [modalities]:
        method = mode.get("method", "forward") if isinstance(mode, dict) else mode
        if not own_code and not (isinstance(method, str) and _METHODS.fullmatch(method)):
            raise UserError(f"{path} calls the method {short(method)}: expected forward, or {_LOAD}")


def _check_arguments(path: Path, name: str, content: Any, own_code: bool) -> None:
    if not isinstance(content, dict):
        raise UserError(f"{path} says {name} {short(content)}: expected an object of settings")
    kind = _ARGUMENTS[name]
    if kind == "processing":
        for key, inner in content.items():
            if not isinstance(inner, dict):
                raise UserError(f"{path} says {name}.{short(key)} {short(inner)}: expected an object of settings")
            # What images, audio and video are made of is numbers, and words such as the name of an interpolation.
            _check_keys(path, f"{name}.{key}", inner, _RULES.get(key) or dict.fromkeys(inner, _sizes))
    elif own_code:
        _check_keys(path, name, {key: content[key] for key in content if key == "weights_only"}, {})
    else:
        _check_keys(path, name, content, _RULES[kind])


def _check_keys(path: Path, name: str, content: Mapping[str, Any], rules: Mapping[str, _Rule]) -> None:
    for key, value in content.items():
        if value is None:  # what every reader assumes
            continue
        if key not in rules:
            raise UserError(f"{path} sets {name}.{key}, not known to be harmless: take it out, or {_LOAD}")
        if not rules[key](value):
            raise UserError(
                f"{path} sets {name}.{key} to {short(value)}, not known to be harmless: take it out, or {_LOAD}"
            )


def _check_special_tokens(path: Path, content: dict[str, Any]) -> None:
    """Check that it names tokens alone: whatever else it says takes the place of the tokenizer's own arguments."""
    for key in content:
        if not re.fullmatch(r"\w+_tokens?", key):
            raise UserError(f"{path} sets {short(key)}, which is no token: take it out")


def _check_tokenizer_config(path: Path, content: dict[str, Any]) -> None:
    for key in ("vocab", "merges"):
        if isinstance(content.get(key), str):
            raise UserError(f"{path} names the file {key} {short(content[key])}: expected it in tokenizer.json")
    if content.get("init_inputs"):
        raise UserError(f"{path} sets init_inputs to {short(content['init_inputs'])}: take it out")
    names = content.get("fast_tokenizer_files") or []
    for name in names if isinstance(names, list) else [names]:
        if not (isinstance(name, str) and re.fullmatch(r"tokenizer[\w.-]*\.json", name)):
            raise UserError(f"{path} names the tokenizer {short(name)}: expected tokenizer.json")
    for library in _LIBRARIES:
        options = content.get(library) or {}
        for option, value in options.items() if isinstance(options, dict) else [("", options)]:
            if not (_plain(value) or _word(value)):
                raise UserError(f"{path} sets {library}.{option} to {short(value)}: take it out, or {_LOAD}")


def _check_tokenizer(path: Path) -> None:
    """Check that the vocabulary is in the file: where its name stands in its place, a reader opens that."""
    model = read_object(path, _MOST_BYTES).get("model")
    for key, kinds in (("vocab", (dict, list)), ("merges", (list,))):
        value = model.get(key) if isinstance(model, dict) else None
        if not isinstance(value, (*kinds, type(None))):
            raise UserError(f"{path} names the file {key} {short(value)}: expected what is in it")


def _check_config(path: Path, content: dict[str, Any]) -> None:
    for key, value in _entries(content):
        name = key.removeprefix("_")
        harmless = True
        if name in {"attn_implementation", "attn_implementation_internal"}:
            harmless = _attention(value)
        elif name in {"experts_implementation", "experts_implementation_internal"}:
            harmless = _experts(value)
        elif name == "quantization_config":
            harmless = value is None or (isinstance(value, dict) and value.get("quant_method") in _QUANTIZERS)
        elif name in {"transformers_weights", "configuration_files"}:  # other files than those that are checked
            harmless = value is None
        elif name in {"use_pretrained_backbone", "use_timm_backbone", "use_kernels"}:
            harmless = not value
        elif isinstance(value, str):
            harmless = not _FETCHED.match(value)
        if not harmless:
            raise UserError(f"{path} sets {key} to {short(value)}, not known to be harmless: take it out, or {_LOAD}")


def _check_letters(path: Path, content: Any) -> None:
    """Refuse what a terminal would act on: readers print settings in their warnings."""
    for key, text in _strings(content):
        if re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", key + text):
            raise UserError(f"{path} holds control characters, in {short(key)} or {short(text)}: take them out")


def _check_files(root: Path, path: Path, content: Any) -> None:
    """Refuse the names of files outside the model's folder, where a reader may open them."""
    home, is_processor = root.resolve(), path.name != CONFIG
    for key, text in _strings(content):
        if key in _LEFT_BEHIND or key in _WORDS or _TOKENS.search(key):
            continue
        opened = is_processor and _OPENED.fullmatch(key) is not None
        if opened:
            check_relative(text, f"{path}, in {key},")
        if _is_outside(text, home, opened):
            raise UserError(f"{path} names the file {key} {short(text)}: expected one inside the model's folder")


def _is_outside(text: str, home: Path, opened: bool) -> bool:
    """Whether a text is the name of a file outside the model's folder."""
    if not 0 < len(text) < 4_096 or "\0" in text:
        return False
    # Any word may happen to be the name of a file here: it counts where it looks like one, or is opened as one.
    absolute = PureWindowsPath(text).anchor != ""
    if not (absolute or opened or re.search(r"[./\\]", text)):
        return False
    try:
        found = Path(text).exists() if absolute else Path(text).is_file()
        return found and not Path(text).resolve().is_relative_to(home)
    except (OSError, RuntimeError, UnicodeError):  # no file can have that name
        return False


def _entries(content: Any) -> Iterator[tuple[str, Any]]:
    """Yield each key with its value, at every depth."""
    rest = [content]
    while rest:
        each = rest.pop()
        if isinstance(each, dict):
            yield from each.items()
        rest += [inner for inner in inside(each) if isinstance(inner, (dict, list))]


def _strings(content: Any) -> Iterator[tuple[str, str]]:
    """Yield each string with the key that it belongs to, at every depth, and each key with an empty one."""
    rest = [("", content)]
    while rest:
        key, each = rest.pop()
        if isinstance(each, str):
            yield key, each
        elif isinstance(each, dict):
            for name, inner in each.items():
                yield name, ""
                named = "words" if name == "vocab" and isinstance(inner, list) else name
                # Below a key whose values are words, or tokens, there are no others.
                rest.append((key if key in _WORDS or _TOKENS.search(key) else named, inner))
        else:
            rest += [(key, inner) for inner in inside(each)]


def inside(content: Any) -> list[Any]:
    """Return what an object or a list of JSON holds; nothing if it is neither."""
    return list(content.values()) if isinstance(content, dict) else content if isinstance(content, list) else []
