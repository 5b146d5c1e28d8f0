"""Code written for BERT, with its import line and the checkpoint's name changed, says which class a text is of.

python examples/article.py FOLDER_OR_HUB_NAME
"""

import sys

import torch

from modernbert import ModernBERTForSequenceClassification, ModernBERTTokenizer

folder = sys.argv[1]
tokenizer = ModernBERTTokenizer.from_pretrained(folder)
model = ModernBERTForSequenceClassification.from_pretrained(folder)

for text in ("ModernBERT在NLP任务中表现优异。", "ModernBERT does well at NLP."):
    inputs = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits
    predicted = torch.argmax(logits, dim=1).item()
    print(f"{text} → {model.config.id2label[predicted]}")
