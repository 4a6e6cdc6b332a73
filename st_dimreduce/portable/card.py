"""The model card of a reduced model, for people and for the Hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from st_dimreduce.enums import Precision
from st_dimreduce.portable.serving import Serving
from st_dimreduce.record import FitRecord, record_comment
from st_dimreduce.untrusted import harmless

MARK = "<!-- Written by st_dimreduce, anew at every publish: take this line out to keep a text of your own. -->"
PICTURE = "quality.png"
_ORIGIN = ("base_model", "license", "license_name", "license_link", "language")  # from the base model's card
_REPO = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_NAMELESS = "path or name of this model"
_ENOUGH = 0.99  # share of the best value that a recommended precision retains
_TAGS = ["sentence-transformers", "feature-extraction", "sentence-similarity", "dimensionality-reduction"]
# Metric, its heading, and the name the Hub knows it by: that of Sentence Transformers' evaluators where there is one.
_METRICS = {
    "ndcg": ("nDCG@10", "cosine_ndcg@10"),
    "recall": ("recall@10", "cosine_recall@10"),
    "sts": ("STS", "spearman_cosine"),
    "overlap": ("overlap@10", "neighbour_overlap@10"),
    "retention": ("retention", "retention"),
    "spearman": ("Spearman of cosines", "spearman_with_base_model"),
}
_SETTINGS = {  # fields of the record, in the words of the card
    "method": "method",
    "objective": "objective",
    "vectors": "vectors it was fitted on",
    "cloze_pairs": "cloze pairs for within-pair whitening",
    "labelled_pairs": "labelled pairs it was trained on",
    "strength": "strength (how far quality departs from fidelity)",
    "whitening": "whitening (power of the eigenvalues)",
    "rotation": "rotation",
    "gain": "gain (root mean square of the Tanh's input)",
    "nested": "sizes at which it may be truncated",
    "mean_norm": "mean norm of the vectors it reduces",
    "seed": "seed",
    "trained_steps": "steps of contrastive training",
    "distilled_steps": "steps of distillation",
}


def model_card(
    record: FitRecord,
    in_features: int,
    out_features: int,
    name: str | None = None,
    picture: bool = False,
    serving: Serving | None = None,
) -> str:
    """Write the README.md of a reduced model.

    Args:
        record: The record of its head. What it does not say is left out of the card.
        in_features: Size of the base model's embeddings.
        out_features: Size of the reduced embeddings.
        name: The model's name on the Hub. Defaults to None: the reader is told to put in name or path.
        picture: Whether ``quality.png`` will be beside the card. Defaults to False.
        serving: What readers make of the model's folder. Defaults to None: the card says nothing of them.

    Returns:
        Markdown with a block of metadata that the Hub reads, and the record in a comment that a loaded model keeps.
    """
    comment, record = record_comment(record), _cleaned(record)
    base = record.base_model
    title = f"{base.split('/')[-1]} in {out_features} dimensions" if base else None
    title = title or f"Sentence embeddings of {out_features} dimensions"
    origin = f" It is [`{base}`](https://huggingface.co/{base}) with one more layer." if base else ""
    parts = [
        f"---\n{_metadata(record, out_features, name or title, serving).to_yaml()}\n---\n",
        f"{MARK}\n{comment}\n",
        f"# {title}\n",
        f"Maps a text to {out_features} numbers, where its base model gives {in_features}.{origin} "
        f"{_advice(record, in_features, out_features)}\n",
        _usage(record, out_features, name or _NAMELESS),
        serving.section(name or _NAMELESS) if serving else "",
        _results(record, picture),
        _tasks(record),
        _fit(record, in_features, out_features),
        _licence(record),
    ]
    return "\n".join(part for part in parts if part)


def _cleaned(record: FitRecord) -> FitRecord:
    """Return the record with texts that mean nothing in Markdown and HTML: who wrote it may be anybody."""
    texts = {
        each.name: _clean(getattr(record, each.name))
        for each in fields(record)
        if each.name not in {"precision", "nested", "license_link"}  # the link stands in the metadata alone
    }
    if texts["base_model"] is not None and not _REPO.fullmatch(texts["base_model"]):
        texts["base_model"] = None  # whatever it is, it is not a model on the Hub
    return replace(record, **texts)


def _clean(value: Any) -> Any:
    if isinstance(value, dict):
        return {_clean(key): _clean(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_clean(inner) for inner in value)
    if isinstance(value, str):
        return harmless(value)
    return value


def reduced_rows(record: FitRecord, out_features: int) -> list[dict[str, Any]]:
    """Return the rows of a record's figures that are of the model itself: none of its base, a peer, a baseline."""
    rows = (record.figures or {}).get("rows", [])[1:]
    stored = {precision.value for precision in Precision}
    mine = [row for row in rows if row["dimensions"] == out_features and row["precision"] in stored]
    return [row for row in mine if "untrained" not in row["name"]]


def recommended(record: FitRecord, out_features: int) -> tuple[Precision, int]:
    """Return the precision to store the model's vectors in, and the bytes per vector in it.

    What the fit chose for a budget; else the smallest measured that retains 99 % of the best value; else float32.
    """
    precision, rows = record.precision, reduced_rows(record, out_features)
    if record.choice is None and record.figures and rows:
        metric = record.figures.get("metric", "overlap")
        good = [row for row in rows if row[metric] >= _ENOUGH * max(row[metric] for row in rows)]
        precision = Precision(min(good, key=lambda row: row["bytes_per_vector"])["precision"])
    return precision, precision.bytes_per_vector(out_features)


def figures_table(figures: dict[str, Any]) -> str:
    """Lay figures out as a Markdown table; what was not measured has no column."""
    rows = figures["rows"]
    metrics = {key: title for key, (title, _) in _METRICS.items() if any(row.get(key) is not None for row in rows)}
    if figures.get("metric", "overlap") == "overlap":
        metrics.pop("retention", None)  # which is the same as the overlap
    lines = [["", "dimensions", "stored as", "bytes", "GB for 10M", *metrics.values()]]
    lines.append(["---", *["---:"] * (len(lines[0]) - 1)])
    for row in rows:
        size = [str(row["dimensions"]), row["precision"], f"{row['bytes_per_vector']:,}"]
        values = [_percent(row.get(key), (row.get("intervals") or {}).get(key)) for key in metrics]
        lines.append([row["name"], *size, f"{row['bytes_per_vector'] / 100:.2f}", *values])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _percent(share: float | None, interval: Sequence[float] | None) -> str:
    if share is None:
        return ""
    ends = [f"{100 * end:.1f}" for end in interval or ()]
    return f"{100 * share:.1f}" + (f" ({' to '.join(ends)})" if len(set(ends)) > 1 else "")


def _metadata(record: FitRecord, out_features: int, name: str, serving: Serving | None) -> ModelCardData:
    results = [
        EvalResult(
            task_type="information-retrieval",
            task_name="Information Retrieval",
            dataset_type="unknown",  # as Sentence Transformers' own cards say of a dataset that is not on the Hub
            dataset_name="texts held out from the fit",
            metric_type=kind,
            metric_name=f"{title}, {row['precision']}, {row['bytes_per_vector']} bytes per vector",
            metric_value=round(float(row[metric]), 4),
        )
        for row in reduced_rows(record, out_features)
        for metric, (title, kind) in _METRICS.items()
        if row.get(metric) is not None and metric != "retention"
    ]
    tasks = [row for row in _task_rows(record) if row["dimensions"] == out_features]
    results += [
        EvalResult(
            task_type=row["type"],
            dataset_type=row["dataset"] if _REPO.fullmatch(row["dataset"]) else "unknown",
            dataset_name=f"MTEB {_task_name(row)}",
            dataset_config=row["subset"],
            dataset_split=row["split"],
            dataset_revision=row["revision"],
            metric_type=row["metric"],
            metric_name=f"{row['metric']}, {row['precision']}, {row['bytes_per_vector']} bytes per vector",
            metric_value=round(float(row["value"]), 5),
        )
        for row in tasks
    ]
    origin: dict[str, Any] = {key: getattr(record, key) for key in _ORIGIN}
    return ModelCardData(
        **origin,
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=[*_TAGS, *(serving.tags() if serving else []), *(["mteb"] if tasks else [])],
        model_name=name if results else None,
        eval_results=results or None,
    )


def _advice(record: FitRecord, in_features: int, out_features: int) -> str:
    precision, size = recommended(record, out_features)
    used = record.precision  # what apply, encode, serve and export store, if they are not told otherwise
    stored = "This is" if used is Precision.FLOAT32 else f"Stored as `{used.value}`, this is"
    full = Precision.FLOAT32.bytes_per_vector(in_features)
    less = "" if precision is used else f", or {size:,} stored as `{precision.value}`"
    return f"{stored} {used.bytes_per_vector(out_features):,} bytes per vector instead of {full:,}{less}."


def _usage(record: FitRecord, out_features: int, name: str) -> str:
    precision, size = recommended(record, out_features)
    text = f"""## Usage

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{name}")
embeddings = model.encode(["A sentence", "Another sentence"])  # shape (2, {out_features})
```

No flag and no plug-in.
"""
    if precision is Precision.FLOAT32:
        return text
    return f"""{text}
To store {size:,} bytes per vector and search them (`pip install st_dimreduce`):

```python
from st_dimreduce import Codes

codes = Codes.of(model.encode_document(["A sentence", "Another sentence"]), "{precision.value}")
scores, rows = codes.search(model.encode_query(["A question"]), k=10)
```
"""


def _results(record: FitRecord, picture: bool) -> str:
    figures = record.figures or {}
    if not figures.get("rows"):
        return ""
    image = f"\n![Quality against the bytes per vector]({PICTURE})\n" if picture else ""
    table = figures_table(figures)
    brackets = "\nIn brackets: 95 % confidence intervals." if "(" in table else ""
    counts = f"{figures['documents']:,} documents, {figures['queries']:,} queries"
    return f"""## Size and quality

In percent; {counts}. Queries are floats, documents are stored as the row says. overlap@10: share of the base model's
ten nearest neighbours that are found. nDCG@10 and recall@10, where given, are against the relevant documents, STS
against people's scores; retention: the first of these, relative to the base model's.{brackets}

{table}
{image}"""


def _task_rows(record: FitRecord) -> list[dict[str, Any]]:
    """Return what mteb measured of the model, as :meth:`st_dimreduce.integrations.mteb.CodesModel.rows` gives it."""
    return (record.figures or {}).get("mteb", [])


def _task_name(row: dict[str, Any]) -> str:
    return row["task"] if row["subset"] == "default" else f"{row['task']} ({row['subset']})"


def _tasks(record: FitRecord) -> str:
    lines = [
        f"| {_task_name(row)} | {row['split']} | {row['precision']} | {row['bytes_per_vector']:,} | {row['metric']} "
        f"| {100 * row['value']:.1f} |"
        for row in _task_rows(record)
    ]
    if not lines:
        return ""
    return "\n".join(
        [
            "## MTEB\n",
            "In percent. Queries are floats; every other text is stored as the row says, and decoded.\n",
            "| task | split | stored as | bytes | metric | score |",
            "| --- | --- | --- | ---: | --- | ---: |",
            *lines,
            "",
        ]
    )


def _fit(record: FitRecord, in_features: int, out_features: int) -> str:
    layer = f"One layer, {in_features} to {out_features}, Linear and Tanh, behind the pooling"
    values = {each.name: getattr(record, each.name) for each in fields(record)}
    lines = [f"- {text}: {_plain(values[name])}" for name, text in _SETTINGS.items() if values[name] is not None]
    rest = "`st_dimreduce.json` has all of it" if lines else "how it was fitted is not on record"
    if record.versions:
        lines.append("- with: " + ", ".join(f"{name} {version}" for name, version in record.versions.items()))
    return "\n".join(["## How it was fitted\n", f"{layer}; {rest}.", "", *lines, ""])


def _plain(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _licence(record: FitRecord) -> str:
    base, licence = record.base_model, record.license_name or record.license
    whose = f"`{base}`" if base else "the base model"
    known = f"The card of {whose} names `{licence}`, which this card repeats: its terms hold for what is made from it."
    unknown = f"The licence of {whose} is not on record: look it up before you pass this model on."
    return f"## Licence\n\n{known if licence else unknown}\n"
