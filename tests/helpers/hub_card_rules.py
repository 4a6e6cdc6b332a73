"""What the Hub checks of a model card's metadata, as far as its documentation says."""

from __future__ import annotations

import re

import yaml

LICENCES = {"apache-2.0", "mit", "cc-by-4.0", "cc-by-sa-4.0", "other", "unknown"}


def card_errors(text):
    """What the Hub would refuse in a card's metadata."""
    found = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    if not found:
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        data = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        return [f"invalid yaml: {error}"], []
    return [message for holds, message in _rules(data) if not holds], []


def _rules(data):
    yield data.get("license") in {None, *LICENCES}, f'"license" must be one of {sorted(LICENCES)}'
    base = data.get("base_model", "x")
    yield re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(base)), '"base_model" must be the name of a model on the Hub'
    languages = data.get("language") or []
    for language in [languages] if isinstance(languages, str) else languages:
        known = re.fullmatch(r"[a-z]{2,3}|code|multilingual", language)
        yield known, f'"language" {language!r} must be an ISO 639 code'
    yield all(isinstance(tag, str) for tag in data.get("tags") or []), '"tags" must be strings'
    for model in data.get("model-index") or []:
        yield isinstance(model.get("name"), str) and model["name"], '"model-index" needs a name'
        for result in model["results"]:
            named = result["task"].get("type") and result["dataset"].get("type") and result["dataset"].get("name")
            yield named, '"model-index" results need task.type, dataset.type and dataset.name'
            measured = all(metric.get("type") and metric.get("value") is not None for metric in result["metrics"])
            yield measured, '"model-index" metrics need type and value'
