"""Passages of a store before a question: what a language model is asked. Any RAG framework's retriever is these ten lines.

python examples/rag.py STORE "question" [TOKENS]
"""

import sys

from modernbert.retrieval.search import Retriever

store, question, *budget = sys.argv[1:]
hits = Retriever(store).within(question, budget_tokens=int(budget[0]) if budget else 1500)
passages = [
    f"[{n}] {hit.source}, characters {hit.start} to {hit.end}\n{hit.text}" for n, hit in enumerate(hits, start=1)
]
print("\n\n".join([*passages, f"Answer from the passages above, and name those you used.\n\nQuestion: {question}"]))
