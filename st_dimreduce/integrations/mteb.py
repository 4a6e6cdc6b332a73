"""mteb: its tasks on codes, as a store would hold them, and its results on the model card."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense
from sentence_transformers.util import cos_sim, pairwise_cos_sim

from st_dimreduce.codes.precision import dequantize, quantize
from st_dimreduce.dim_reduce import head_of
from st_dimreduce.enums import Precision
from st_dimreduce.errors import MissingExtraError, UserError

try:
    import mteb
    from mteb.models import EncoderProtocol, SentenceTransformerEncoderWrapper
    from mteb.types import PromptType
except ModuleNotFoundError as error:
    raise MissingExtraError("mteb is missing: pip install 'st_dimreduce[frameworks]'") from error

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask
    from mteb.models import ModelMeta
    from mteb.results import ModelResult
    from torch import Tensor

KEY = "codes"  # names the precision among mteb's results, which it keeps apart by such names


class CodesModel:
    """A model whose documents are codes, for ``mteb.evaluate``.

    Queries stay float, as :func:`st_dimreduce.search` takes them; every other text is quantised on the fixed grid and
    decoded: documents, and both texts of a pair, which mteb compares as equals. So retrieval scores are those of
    :func:`st_dimreduce.search`. Nothing is calibrated on the texts of a task, as ``mteb.models.CompressionWrapper``
    does.

    mteb keeps results by name, revision and experiment. The experiment is the precision; the revision of a reduced
    model is a digest of head and precision, so that no result of another head is taken for its own.

    Args:
        model: A reduced model, or any encoder of mteb's.
        precision: Precision of the codes. Defaults to None: that of the head's record.
        name: Name of the model among mteb's results, such as the one to publish under. Defaults to None: as mteb
            names the model, which may be after its base model.

    Raises:
        ValueError: If the model is neither, the precision is unknown, or there is none and no head to ask.
    """

    def __init__(
        self,
        model: SentenceTransformer | EncoderProtocol,
        precision: Precision | str | None = None,
        name: str | None = None,
    ) -> None:
        known: dict[str, Any] = {"name": name} if name else {}
        if isinstance(model, SentenceTransformer):
            head, record = head_of(model)
            precision = Precision(record.precision if precision is None else precision)
            known["revision"] = _digest(head, precision)
            model = SentenceTransformerEncoderWrapper(model)
        if not isinstance(model, EncoderProtocol):
            raise UserError(f"the model is a {type(model).__name__}: expected a SentenceTransformer or mteb's encoder")
        if precision is None:
            raise UserError(f"a {type(model).__name__} has no record of a precision: give one, such as 'int4'")
        self.model, self.precision = model, Precision(precision)
        meta = model.mteb_model_meta
        known["experiment_kwargs"] = {**(meta.experiment_kwargs or {}), KEY: self.precision.value}
        self.mteb_model_meta: ModelMeta = meta.model_copy(update=known)

    def encode(self, inputs: Any, *, prompt_type: PromptType | None = None, **kwargs: Any) -> np.ndarray:
        """Encode texts: queries as the model does, others decoded from their codes. float32 of shape (n, k).

        Args:
            inputs: mteb's batches of texts.
            prompt_type: Whether they are queries or documents; None where the task makes no difference.
            **kwargs: What mteb passes on to the model.

        Raises:
            ValueError: If ``kwargs`` ask for a precision of another kind.
        """
        if kwargs.get("precision") not in {None, "float32"}:
            raise UserError(f"encode_kwargs ask for {kwargs['precision']!r} codes: give CodesModel the precision")
        vectors = _array(self.model.encode(inputs, prompt_type=prompt_type, **kwargs))
        if prompt_type == PromptType.query:
            return vectors
        return dequantize(quantize(vectors, self.precision), self.precision, vectors.shape[1])

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Return all cosines, whatever the model compares by: codes have no norm."""
        return cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Return the cosine of each pair of rows."""
        return pairwise_cos_sim(embeddings1, embeddings2)

    def rows(self, results: ModelResult, tasks: Iterable[AbsTask] = ()) -> list[dict[str, Any]]:
        """Return mteb's results of this model for a model card: ``figures={"mteb": rows}``.

        Args:
            results: What ``mteb.evaluate`` returned for this model.
            tasks: The tasks that mteb does not list, which it cannot be asked about by name. Defaults to ().

        Returns:
            One row for each task, split and subset, of strings and numbers.

        Raises:
            ValueError: If the results are of another model or precision, or a task is unknown.
        """
        own = (self.mteb_model_meta.name, self.mteb_model_meta.revision)
        given = (results.model_name, results.model_revision)
        if given != own:
            model = f"{own[0]} in {self.precision}, revision {own[1]}"
            raise UserError(f"these are results of {given[0]}, revision {given[1]}: expected those of {model}")
        size = self.mteb_model_meta.embed_dim
        if not isinstance(size, int):
            raise UserError(f"mteb gives the model embed_dim={size}: expected the size of its embeddings, a number")
        about = {task.metadata.name: task.metadata for task in tasks}
        rows = []
        for result in results.task_results:
            name = result.task_name
            if name not in about:
                about[name] = _listed(name).metadata
            task = about[name]
            rows += [
                {
                    "task": name,
                    "type": task.type,
                    "dataset": task.dataset["path"],
                    "revision": task.dataset["revision"],
                    "subset": scores["hf_subset"],
                    "split": split,
                    "metric": task.main_score,
                    "value": float(scores["main_score"]),
                    "dimensions": size,
                    "precision": self.precision.value,
                    "bytes_per_vector": self.precision.bytes_per_vector(size),
                }
                for split, subsets in result.scores.items()
                for scores in subsets
            ]
        return rows


def _array(embeddings: Any) -> np.ndarray:
    if hasattr(embeddings, "detach"):
        embeddings = embeddings.detach().float().cpu().numpy()
    return np.asarray(embeddings, np.float32)


def _digest(head: Dense, precision: Precision) -> str:
    weights = head.linear.weight.detach().float().cpu().numpy()
    return hashlib.sha256(precision.value.encode() + weights.tobytes()).hexdigest()[:16]


def _listed(name: str) -> AbsTask:
    try:
        return mteb.get_task(name)
    except KeyError as error:
        raise UserError(f"mteb lists no task {name!r}: give it in tasks") from error
