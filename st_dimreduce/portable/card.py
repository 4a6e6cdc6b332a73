"""The model card: what the Hub reads of a reduced model, and what a person should know before using it."""

from __future__ import annotations

from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from st_dimreduce.codes.precision import Precision

MARK = "<!-- Written by st_dimreduce, anew at every publish: take this line out to keep a text of your own. -->"
PICTURE = "quality.png"
ORIGIN = ("base_model", "license", "license_name", "license_link", "language")  # what the base model's card says
_ENOUGH = 0.99  # share of the best figure that a recommended precision keeps
_TAGS = ["sentence-transformers", "feature-extraction", "sentence-similarity", "dimensionality-reduction"]
# Figure, its heading, and the name the Hub knows it by: that of Sentence Transformers' evaluators where there is one.
_MEASURES = {
    "ndcg": ("nDCG@10", "cosine_ndcg@10"),
    "recall": ("recall@10", "cosine_recall@10"),
    "sts": ("STS", "spearman_cosine"),
    "overlap": ("overlap@10", "neighbour_overlap@10"),
    "retention": ("kept", "retention"),
    "spearman": ("cosines agree", "spearman_with_base_model"),
}
_SETTINGS = {
    "method": "method",
    "objective": "made for",
    "vectors": "vectors it was fitted on",
    "pairs": "pairs of texts that told meaning from noise",
    "labelled_pairs": "labelled pairs it was trained on",
    "whitening": "whitening (power of the eigenvalues)",
    "rotation": "rotation",
    "gain": "root mean square of the Tanh's input",
    "nested": "sizes at which it may be cut",
    "mean_norm": "mean length of the vectors it reads",
    "seed": "seed",
}
_NOT_SETTINGS = {"in_features", "out_features", "versions", "figures", "choice", "precision", *ORIGIN}


def model_card(record: dict[str, Any], name: str | None = None, picture: bool = False) -> str:
    """Write the README.md of a reduced model.

    Args:
        record: What ``st_dimreduce.json`` says of the model. Under ``figures``, a comparison's ``to_dict()``; what it
            does not say is left out of the card.
        name: The model's name on the Hub. Defaults to None: the reader is told to put in name or path.
        picture: Whether ``quality.png`` will stand beside the card. Defaults to False.

    Returns:
        Markdown with a block of metadata that the Hub reads.
    """
    size, base = record["out_features"], record.get("base_model")
    title = f"{base.split('/')[-1]} in {size} dimensions" if base else f"Sentence embeddings of {size} dimensions"
    origin = f" It is [`{base}`](https://huggingface.co/{base}) with one layer more." if base else ""
    parts = [
        f"---\n{_metadata(record, name or title).to_yaml()}\n---\n",
        f"{MARK}\n",
        f"# {title}\n",
        f"Maps a text to {size} numbers, where its base model gives {record['in_features']}.{origin} "
        f"{_advice(record)}\n",
        _use(record, name),
        _found(record, picture),
        _fit(record),
        _licence(record),
    ]
    return "\n".join(part for part in parts if part)


def reduced_rows(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a record's figures that are of the model itself: none of its base, a peer, a baseline."""
    rows = record.get("figures", {}).get("rows", [])[1:]
    stored = {precision.value for precision in Precision}
    mine = [row for row in rows if row["dimensions"] == record["out_features"] and row["precision"] in stored]
    return [row for row in mine if "untrained" not in row["name"]]


def recommended(record: dict[str, Any]) -> tuple[Precision, int]:
    """Return the precision to store the model's vectors in, and the bytes each then takes.

    What the fit chose for a budget; else the smallest measured that keeps 99 % of the best figure; else float32.
    """
    precision, rows = Precision(record.get("precision", "float32")), reduced_rows(record)
    if "choice" not in record and rows:
        figure = record["figures"].get("figure", "overlap")
        good = [row for row in rows if row[figure] >= _ENOUGH * max(row[figure] for row in rows)]
        precision = Precision(min(good, key=lambda row: row["bytes_per_vector"])["precision"])
    return precision, precision.bytes_per_vector(record["out_features"])


def _metadata(record: dict[str, Any], name: str) -> ModelCardData:
    results = [
        EvalResult(
            task_type="information-retrieval",
            task_name="Information Retrieval",
            dataset_type="unknown",  # as Sentence Transformers' own cards say of a dataset that is not on the Hub
            dataset_name="texts held out from the fit",
            metric_type=kind,
            metric_name=f"{title}, {row['precision']}, {row['bytes_per_vector']} bytes a vector",
            metric_value=round(float(row[figure]), 4),
        )
        for row in reduced_rows(record)
        for figure, (title, kind) in _MEASURES.items()
        if row.get(figure) is not None and figure != "retention"
    ]
    origin: dict[str, Any] = {key: record.get(key) for key in ORIGIN}
    return ModelCardData(
        **origin,
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=_TAGS,
        model_name=name if results else None,
        eval_results=results or None,
    )


def _advice(record: dict[str, Any]) -> str:
    precision, width = recommended(record)
    full = f"{Precision.FLOAT32.bytes_per_vector(record['in_features']):,}"
    if precision is Precision.FLOAT32:
        return f"A vector takes {width:,} bytes instead of {full}."
    return f"Stored as `{precision.value}`, a vector takes {width:,} bytes instead of {full}."


def _use(record: dict[str, Any], name: str | None) -> str:
    size, (precision, width) = record["out_features"], recommended(record)
    text = f"""## Use

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{name or "path or name of this model"}")
embeddings = model.encode(["A sentence", "Another sentence"])  # shape (2, {size})
```

No flag, no plug-in, any version of Sentence Transformers; Text Embeddings Inference serves it too.
"""
    if precision is Precision.FLOAT32:
        return text
    return f"""{text}
To store {width:,} bytes a vector and search them (`pip install st_dimreduce`):

```python
from st_dimreduce import quantize, search

codes = quantize(embeddings, "{precision.value}")  # {width:,} bytes a row
scores, rows = search(model.encode_query(["A question"]), codes, "{precision.value}")
```
"""


def _found(record: dict[str, Any], picture: bool) -> str:
    figures = record.get("figures", {})
    if not figures.get("rows"):
        return ""
    image = f"\n![What is found, against the bytes a vector takes]({PICTURE})\n" if picture else ""
    table = figures_table(figures)
    brackets = "\nIn brackets: 95 % intervals." if "(" in table else ""
    asked = f"{figures['documents']:,} documents, {figures['queries']:,} queries"
    return f"""## What it costs and finds

In percent; {asked}. Queries are floats, documents are stored as the row says. overlap@10: how many of
the base model's ten nearest neighbours are found. nDCG@10 and recall@10, where given, are against the documents that
should be found, STS against people's scores; kept: the first of these, as a share of the base model's.{brackets}

{table}
{image}"""


def figures_table(figures: dict[str, Any]) -> str:
    """Lay figures out as a Markdown table; what was not measured has no column."""
    rows = figures["rows"]
    measures = {key: title for key, (title, _) in _MEASURES.items() if any(row.get(key) is not None for row in rows)}
    if figures.get("figure", "overlap") == "overlap":
        measures.pop("retention", None)  # which says the same
    lines = [["", "dimensions", "stored as", "bytes", "GB for 10M", *measures.values()]]
    lines.append(["---", *["---:"] * (len(lines[0]) - 1)])
    for row in rows:
        size = [str(row["dimensions"]), row["precision"], f"{row['bytes_per_vector']:,}"]
        found = [_figure(row.get(key), (row.get("intervals") or {}).get(key)) for key in measures]
        lines.append([row["name"].replace("|", "/"), *size, f"{row['bytes_per_vector'] / 100:.2f}", *found])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _figure(share: float | None, interval: list[float] | None) -> str:
    if share is None:
        return ""
    ends = [f"{100 * end:.1f}" for end in interval or ()]
    return f"{100 * share:.1f}" + (f" ({' to '.join(ends)})" if len(set(ends)) > 1 else "")


def _fit(record: dict[str, Any]) -> str:
    layer = f"One layer, {record['in_features']} to {record['out_features']}, Linear and Tanh, behind the pooling"
    known = [key for key in _SETTINGS if key in record]
    keys = known + [key for key in record if key not in _SETTINGS and key not in _NOT_SETTINGS]
    lines = [f"- {_SETTINGS.get(key, key.replace('_', ' '))}: {_plain(record[key])}" for key in keys]
    said = f"{layer}; `st_dimreduce.json` says all of it." if lines else f"{layer}; how it was fitted is not on record."
    versions = [f"{name} {version}" for name, version in record.get("versions", {}).items()]
    return "\n".join(
        ["## How it was fitted\n", said, "", *lines, *(["- with: " + ", ".join(versions)] if versions else []), ""]
    )


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_plain(part) for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _licence(record: dict[str, Any]) -> str:
    base, licence = record.get("base_model"), record.get("license_name") or record.get("license")
    whose = f"`{base}`" if base else "the base model"
    said = f"The card of {whose} names `{licence}`, which this card repeats: its terms hold for what is made from it."
    unknown = f"The licence of {whose} is not on record: look it up before you pass this model on."
    return f"## Licence\n\n{said if licence else unknown}\n"
