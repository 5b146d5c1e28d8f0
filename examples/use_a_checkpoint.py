"""Open a checkpoint, get hidden states of packed texts, fill a mask.

python examples/use_a_checkpoint.py RUN_OR_CHECKPOINT_OR_HUB_NAME
"""

import sys

import torch

import modernbert

model = modernbert.load(sys.argv[1])
tokenizer = model.need_tokenizer()

# Texts of any lengths lie end to end; nothing is padded.
texts = ["import os", "def add(a, b):\n    return a + b"]
batch = modernbert.PackedBatch.from_sequences([tokenizer.encode(text).ids for text in texts])
with torch.inference_mode():
    hidden_TD = model.encoder(batch)

# One vector a text: the mean of its tokens.
for text, vectors in zip(texts, hidden_TD.split(batch.lengths()), strict=True):
    print(f"{text[:20]!r}: {len(vectors)} tokens, mean vector of {vectors.mean(0).numel()} numbers")

for predictions in model.fill_mask("for i in [MASK](10):", top_k=3):
    for _text, probability, filled in predictions:
        print(f"{probability:6.1%}  {filled}")
