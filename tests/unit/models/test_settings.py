"""Settings that would make a reader run, fetch or open something are refused in one line; those of real models pass."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from st_dimreduce import UserError, check, reduce_model, save_portable
from st_dimreduce.models.load import load_model
from st_dimreduce.models.settings import check_settings
from tests.helpers.hostile import Boom
from tests.helpers.tiny import SENTENCES, make_tiny

SENTENCE, TOKENIZER, MAP = "sentence_bert_config.json", "tokenizer_config.json", "special_tokens_map.json"


@pytest.fixture(scope="module")
def base(tiny_path, tmp_path_factory):
    path = tmp_path_factory.mktemp("settings") / "base"
    make_tiny(tiny_path).save_pretrained(str(path))
    (path / SENTENCE).write_text('{"max_seq_length": 24, "do_lower_case": false}')
    return path


@pytest.fixture
def folder(base, tmp_path):
    return Path(shutil.copytree(base, tmp_path / "folder"))


def change(path, **settings):
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | settings))


# A file of settings, what it says, and what the message names.
REFUSED = [
    (SENTENCE, {"model_args": {"weights_only": False}}, "model_args.weights_only"),
    (SENTENCE, {"model_kwargs": {"use_kernels": True}}, "model_kwargs.use_kernels"),
    (SENTENCE, {"model_kwargs": {"allow_all_kernels": True}}, "model_kwargs.allow_all_kernels"),
    (SENTENCE, {"model_kwargs": {"attn_implementation": "someone/kernel"}}, "model_kwargs.attn_implementation"),
    (SENTENCE, {"model_kwargs": {"gguf_file": "x.gguf"}}, "model_kwargs.gguf_file"),
    (SENTENCE, {"model_kwargs": {"adapter_kwargs": {"x": 1}}}, "model_kwargs.adapter_kwargs"),
    (SENTENCE, {"model_kwargs": {"offload_folder": "x"}}, "model_kwargs.offload_folder"),
    (SENTENCE, {"model_kwargs": {"quantization_config": {"quant_method": "fp8"}}}, "model_kwargs.quantization_config"),
    (SENTENCE, {"tokenizer_args": {"vocab_file": "/etc/hostname"}}, "tokenizer_args.vocab_file"),
    (SENTENCE, {"processor_kwargs": {"tokenizer_file": "x.json"}}, "processor_kwargs.tokenizer_file"),
    (SENTENCE, {"config_args": {"auto_map": {}}}, "config_args.auto_map"),
    (SENTENCE, {"model_kwargs": {"variant": "x/../../other"}}, "model_kwargs.variant"),
    (SENTENCE, {"config_kwargs": {"num_hidden_layers": 999}}, "config_kwargs.num_hidden_layers"),
    (SENTENCE, {"config_kwargs": {"text_config": {"n_layers": 99}}}, "config_kwargs.text_config.n_layers"),
    (SENTENCE, {"config_kwargs": {"cache_dir": "/tmp"}}, "config_kwargs.cache_dir"),  # noqa: S108, a text
    (SENTENCE, {"processing_kwargs": {"text": {"max_length": 10**9}}}, "processing_kwargs.text.max_length"),
    (SENTENCE, {"tokenizer_name_or_path": "/etc"}, "tokenizer_name_or_path"),
    (SENTENCE, {"modality_config": {"text": {"method": "save_pretrained"}}}, "the method 'save_pretrained'"),
    ("sentence_roberta_config.json", {"model_args": {"weights_only": False}}, "model_args.weights_only"),
    ("sentence_xlm-roberta_config.json", {"model_args": {"weights_only": False}}, "model_args.weights_only"),
    (TOKENIZER, {"vocab": "/etc/hostname", "unk_token": "x"}, "vocab,"),
    (TOKENIZER, {"merges": "../merges.txt"}, "'../merges.txt'"),
    (TOKENIZER, {"merges_file": "/etc/hostname"}, "merges_file"),
    (TOKENIZER, {"vocab_file": "../other/vocab.txt"}, "vocab_file"),
    (TOKENIZER, {"spm_file": "C:\\private\\x"}, "spm_file"),
    (TOKENIZER, {"source_spm": "/nowhere/x"}, "source_spm"),
    (TOKENIZER, {"anything": "/etc/hostname"}, "anything '/etc/hostname'"),
    (TOKENIZER, {"anything": {"deep": ["/etc"]}}, "deep '/etc'"),
    (TOKENIZER, {"sp_model_kwargs": {"model_file": "/etc/hostname"}}, "model_file"),
    (TOKENIZER, {"mecab_kwargs": {"mecab_option": "-r /etc/hostname"}}, "mecab_kwargs.mecab_option"),
    (TOKENIZER, {"init_inputs": ["/etc/hostname"]}, "init_inputs"),
    (TOKENIZER, {"fast_tokenizer_files": ["../tokenizer.json"]}, "'../tokenizer.json'"),
    (TOKENIZER, {"gguf_file": "/etc/hostname"}, "gguf_file"),
    (MAP, {"tokenizer_file": "/etc/hostname"}, "tokenizer_file"),
    (MAP, {"vocab": "/etc/hostname"}, "vocab"),
    ("tokenizer.json", {"model": {"type": "WordPiece", "vocab": "/etc/hostname"}}, "vocab '/etc/hostname'"),
    ("tokenizer.json", {"model": {"type": "BPE", "vocab": {}, "merges": "/etc/hostname"}}, "merges '/etc/hostname'"),
    ("preprocessor_config.json", {"class_info_file": "x.json"}, "class_info_file"),
    ("preprocessor_config.json", {"repo_path": "someone/data"}, "repo_path"),
    ("processor_config.json", {"audio_tokenizer_name_or_path": "someone/else"}, "audio_tokenizer_name_or_path"),
    ("adapter_config.json", {"base_model_name_or_path": "someone/else"}, "an adapter for another model"),
    ("config.json", {"attn_implementation": "someone/kernel"}, "attn_implementation to 'someone/kernel'"),
    ("config.json", {"_attn_implementation": "kernels-community/x:f"}, "_attn_implementation"),
    ("config.json", {"text_config": {"attn_implementation": {"": "a/b@c"}}}, "attn_implementation"),
    ("config.json", {"experts_implementation": "a/b"}, "experts_implementation"),
    ("config.json", {"quantization_config": {"quant_method": "mxfp4"}}, "quantization_config"),
    ("config.json", {"transformers_weights": "other.safetensors"}, "transformers_weights"),
    ("config.json", {"configuration_files": ["config.4.0.0.json"]}, "configuration_files"),
    ("config.4.0.0.json", {"use_kernels": True}, "use_kernels"),
    ("config.json", {"use_pretrained_backbone": True}, "use_pretrained_backbone"),
    ("config.json", {"use_timm_backbone": True}, "use_timm_backbone"),
    ("config.json", {"backbone": "hf-hub:someone/model"}, "backbone to 'hf-hub:someone/model'"),
    ("config.json", {"backbone_config": {"model_type": "timm_backbone"}}, "model_type to 'timm_backbone'"),
    ("config.json", {"passages_path": "/etc/hostname"}, "passages_path"),
    ("config.json", {"hidden_act": "\x1b[2Jgelu"}, "control characters"),
    ("config.json", {"\x9b2J": 1}, "control characters"),
]


@pytest.mark.parametrize("by", [load_model, check])
@pytest.mark.parametrize(("file", "settings", "named"), REFUSED)
def test_a_setting_that_may_harm_is_refused_in_one_line(by, file, settings, named, folder):
    change(folder / file, **settings)
    with pytest.raises(UserError, match=file) as caught:
        by(folder)
    said = str(caught.value)
    assert named in said
    assert said.isprintable()


@pytest.mark.parametrize("place", ["1_Pooling", "1_Pooling/deeper"])
def test_settings_are_refused_wherever_they_lie_in_a_module(place, folder):
    (folder / place).mkdir(exist_ok=True)
    change(folder / place / SENTENCE, model_args={"weights_only": False})
    with pytest.raises(UserError, match=r"model_args\.weights_only"):
        load_model(folder)


# What real models say.
ALLOWED = [
    (SENTENCE, {"model_args": {"device_map": None}}),
    ("config.json", {"seed": 2**31 - 1, "sliding_window": 2**31}),
    (SENTENCE, {"model_args": {"torch_dtype": "float32", "attn_implementation": "eager"}}),
    (SENTENCE, {"model_args": {"trust_remote_code": True}}),
    (SENTENCE, {"model_kwargs": {"dtype": "auto", "attn_implementation": "sdpa"}}),
    (SENTENCE, {"tokenizer_args": {"padding_side": "left", "model_max_length": 20, "trust_remote_code": True}}),
    (SENTENCE, {"config_args": {"use_cache": False}, "processing_kwargs": {"text": {"padding": "longest"}}}),
    (
        SENTENCE,
        {"model_kwargs": {"weights_only": True, "use_safetensors": True}, "config_kwargs": {"of_tomorrow": None}},
    ),
    ("config.json", {"setting_of_tomorrow": {"x": [1, 2]}, "rope_theta": 10**8, "sliding_window": 2**31}),
    ("config.json", {"use_kernels": False, "transformers_weights": None}),
    (SENTENCE, {"transformer_task": "feature-extraction", "query_length": 12, "document_length": None}),
    (TOKENIZER, {"name_or_path": "/home/maker/.cache/torch/x", "special_tokens_map_file": "/etc/hostname"}),
    (TOKENIZER, {"tokenizer_file": "/etc/hostname"}),
    (TOKENIZER, {"sp_model_kwargs": {}, "init_inputs": [], "vocab_file": None, "never_split": ["/etc/hostname"]}),
    (TOKENIZER, {"added_tokens_decoder": {"0": {"content": "[PAD]", "special": True}}, "chat_template": "/etc"}),
    (MAP, {"unk_token": {"content": "[UNK]", "lstrip": False}, "additional_special_tokens": ["/etc/hostname"]}),
    ("config.json", {"_name_or_path": "/etc/hostname", "_attn_implementation": "sdpa", "attn_implementation": None}),
    ("config.json", {"id2label": {"0": "/etc/hostname"}, "model_path": "/home/somebody/model"}),
    ("data_config.json", [{"name": "/etc/hostname"}]),
]


@pytest.mark.parametrize(("file", "settings"), ALLOWED)
def test_a_setting_of_real_models_passes(file, settings, folder):
    if isinstance(settings, list):
        (folder / file).write_text(json.dumps(settings))
    else:
        change(folder / file, **settings)
    assert load_model(folder).encode(SENTENCES[:2]).shape == (2, 32)


def test_a_word_that_happens_to_be_a_file_here_is_a_word(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("distilbert", "gelu", "mean", "vocab.txt"):
        (tmp_path / name).write_text("private")
    assert load_model(folder).encode(SENTENCES[:2]).shape == (2, 32)
    change(folder / TOKENIZER, vocab_file="vocab.txt")
    with pytest.raises(UserError, match=r"vocab_file 'vocab\.txt': expected one inside"):
        load_model(folder)
    monkeypatch.chdir(folder)
    (folder / "vocab.txt").write_text("the\n")
    assert load_model(folder).encode(SENTENCES[:2]).shape == (2, 32)


def test_a_setting_never_trusts_code_for_the_user(folder, tmp_path):
    canary = tmp_path / "canary"
    (folder / "modeling_x.py").write_text(f"import pathlib; pathlib.Path({str(canary)!r}).touch()\n")
    change(folder / "config.json", auto_map={"AutoConfig": "modeling_x.X", "AutoModel": "modeling_x.X"})
    change(folder / TOKENIZER, auto_map={"AutoTokenizer": ["modeling_x.X", None]})
    names = ("model_args", "tokenizer_args", "config_args")
    change(folder / SENTENCE, **{key: {"trust_remote_code": True} for key in names})
    assert load_model(folder).encode(SENTENCES[:2]).shape == (2, 32)  # by transformers' own code for this model
    assert not canary.exists()


def by_tokenizer(folder, private):
    change(folder / TOKENIZER, vocab=private)


def by_argument(folder, private):
    change(folder / SENTENCE, tokenizer_args={"vocab_file": private})


def by_token_map(folder, private):
    change(folder / MAP, vocab=private)


def by_token_map_file(folder, private):
    change(folder / MAP, vocab_file=private)


def by_tokenizer_json(folder, private):
    content = json.loads((folder / "whole.json").read_text())
    content["model"]["vocab"] = private
    (folder / "tokenizer.json").write_text(json.dumps(content))


ROUTES = [by_tokenizer, by_argument, by_token_map, by_token_map_file, by_tokenizer_json]


@pytest.mark.parametrize("route", ROUTES)
def test_a_private_file_is_in_no_output(route, folder, tmp_path):
    private = tmp_path / "private.txt"
    private.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe launch code\nis one two three\n")
    (folder / "tokenizer.json").rename(folder / "whole.json")
    (folder / TOKENIZER).write_text('{"tokenizer_class": "BertTokenizer", "unk_token": "[UNK]"}')
    route(folder, str(private))
    with pytest.raises(UserError, match="vocab"):
        save_portable(reduce_model(str(folder), SENTENCES, 8), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    # A reader that trusts the settings copies it, so the test is able to fail.
    SentenceTransformer(str(folder), device="cpu").save_pretrained(str(tmp_path / "trusting"))
    assert "the launch code" in (tmp_path / "trusting" / "tokenizer.json").read_text()


@pytest.mark.parametrize("name", ["modules", "tensors", "experts", "list"])
def test_a_config_may_not_ask_for_much_more_than_the_weights_fill(name, folder):
    """With the layers padded by tensors of nothing, only counting what would be allocated tells."""
    if name == "modules":
        change(folder / "config.json", n_layers=1_000)
        message = "says n_layers 1000: expected at most 36"
    elif name == "list":
        change(folder / "config.json", depths=[30] * 1_000)
        message = "says depths 30, 37 times: expected at most 36"
    elif name == "experts":
        change(folder / "config.json", num_local_experts=10_000)
        message = "says num_local_experts 10000"
    else:
        weights = load_file(folder / "model.safetensors")
        save_file(weights | {f"x.{row}": torch.zeros(1) for row in range(300)}, folder / "model.safetensors")
        change(folder / "config.json", n_layers=60, dim=4096, hidden_dim=4096)
        message = r"weights: expected at most .*, from what its files hold"
    with pytest.raises(UserError, match=message):
        load_model(folder)


def router(folder, **types):
    """A model whose first module is a Router of these classes, each in a folder of its own."""
    (folder / "router").mkdir()
    (folder / "router" / "router_config.json").write_text(
        json.dumps({"types": types, "structure": {}, "parameters": {}})
    )
    entries = [{"idx": 0, "name": "0", "path": "router", "type": "sentence_transformers.models.Router"}]
    (folder / "modules.json").write_text(json.dumps(entries))


@pytest.mark.parametrize(
    ("types", "message"),
    [
        ({"a": "os.system"}, "names 'os.system', which is not a class of Sentence Transformers"),
        ({"a": "sentence_transformers.util.http_get"}, "which is not a class of Sentence Transformers"),
        ({"a": "sentence_transformers.models.Dense.torch"}, "which is not a class of Sentence Transformers"),
        ({"../a": "sentence_transformers.models.Transformer"}, r"names the path '\.\./a'"),
        ({".": "sentence_transformers.models.Router"}, "more than 8 deep"),
        (
            {"a": "sentence_transformers.models.Transformer"},
            r"a/sentence_bert_config\.json sets model_args\.weights_only",
        ),
    ],
)
def test_the_branches_of_a_router_are_checked_as_the_model_is(types, message, base, folder):
    router(folder, **types)
    if "a" in types:
        shutil.copytree(base, folder / "router" / "a")
        change(folder / "router" / "a" / SENTENCE, model_args={"weights_only": False} if "Trans" in types["a"] else {})
    with pytest.raises(UserError, match=message):
        load_model(folder)


def test_a_model_of_another_kind_is_refused(folder):
    change(folder / "config_sentence_transformers.json", model_type="CrossEncoder")
    with pytest.raises(UserError, match="model_type 'CrossEncoder': expected SentenceTransformer"):
        load_model(folder)


def test_a_pickle_is_read_as_weights_alone(folder, tmp_path):
    """Even were a setting overlooked: the loader says so itself."""
    (folder / "model.safetensors").unlink()
    torch.save({"x": Boom(str(tmp_path / "canary"))}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="no model could be loaded"):
        load_model(folder)
    assert not (tmp_path / "canary").exists()


@pytest.mark.slow  # which brings the packages that the models are in
@pytest.mark.parametrize("name", ["minilm_path", "mpnet_folder"])
def test_real_models_pass(name, request):
    """Each of the settings of the real models at hand."""
    root = Path(request.getfixturevalue(name))
    for folder in (root, *(path for path in root.iterdir() if path.is_dir())):
        check_settings(root, folder)
    assert check(root), "nothing is wrong"


@pytest.fixture
def mpnet_folder(mpnet):
    return mpnet.model_card_data.model[0].auto_model.config.name_or_path


@pytest.mark.parametrize("by", [load_model, check])
def test_settings_nested_deeply_are_read(by, folder):
    deep = json.loads("[" * 900 + '"/etc/hostname"' + "]" * 900)
    change(folder / TOKENIZER, anything=deep)
    change(folder / "config.json", anything=deep)
    with pytest.raises(UserError, match=r"anything '/etc/hostname'"):
        by(folder)
