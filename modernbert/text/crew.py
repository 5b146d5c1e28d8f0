"""Batches of documents -> the same, looked at, in order: here, or by several processes.

One worker is this process, where the tokenizer uses all cores by threads of its own and the filters one. More are
processes of their own that filter and tokenise whole batches; reading, duplicates and writing stay here. On two cores
both are equally fast. A worker takes 90 MB with a tokenizer of 50,000 entries (160 MB with the language filter) beside
its share of the build's memory, and the process that they are copied from 50 MB. As with anything that starts
processes, a script calls for them under `if __name__ == "__main__":`, for each worker imports it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from tokenizers import Tokenizer

from modernbert.batch import Document
from modernbert.errors import DataError
from modernbert.text.contamination import EvaluationTexts
from modernbert.text.filters import Filters, Looked, Looker

Batch = list[Document]

_looker: Looker | None = None  # of a worker process
_GUARD = 'the script that builds must do so under `if __name__ == "__main__":`, for each worker imports it'


class Crew:
    """Those who look at documents.

    Args:
        num_workers: 1, or a number of processes.
        tokenizer: as `for_plain_text` gives it.
        filters: what to look for.
        evaluation: the texts of `filters.evaluation_texts()`.
        batch_chars: characters that each worker tokenises at once.

    Raises:
        DataError: this is a worker itself, which has come here by importing a script.
    """

    def __init__(
        self,
        num_workers: int,
        tokenizer: Tokenizer,
        filters: Filters,
        evaluation: EvaluationTexts | None,
        batch_chars: int,
    ) -> None:
        self._num_workers = num_workers
        alone = num_workers == 1
        if not alone and getattr(multiprocessing.current_process(), "_inheriting", False):  # what Python itself asks
            raise DataError(f"workers={num_workers}: {_GUARD}")
        # With processes, this one only tokenises what a build that goes on had passed over.
        self.here = Looker(tokenizer, filters if alone else Filters(), evaluation if alone else None, batch_chars)
        if not alone:
            filters.language_filter()  # what is wrong with it is better said here
        self._initargs = (tokenizer.to_str(), tokenizer.encode_special_tokens, filters, evaluation, batch_chars)

    def look(self, batches: Iterable[Batch], *, tokenise: Callable[[], bool]) -> Iterator[tuple[Batch, list[Looked]]]:
        """Pass each batch on with what was found out, in order.

        Args:
            batches: read only a little ahead.
            tokenise: asked for each batch as it is given to a worker.

        Raises:
            DataError: a worker process died.
        """
        if self._num_workers == 1:
            for batch in batches:
                yield batch, self.here.look([document.text for document in batch], tokenise=tokenise())
            return
        # A forked copy of a process with threads may hang; these are copies of a bare one that has loaded the modules.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        with ProcessPoolExecutor(self._num_workers, context, _start, self._initargs) as pool:
            waiting: deque[tuple[Batch, Future[list[Looked]]]] = deque()
            try:
                for batch in batches:
                    texts = [document.text for document in batch]
                    with _saying_who_died():
                        waiting.append((batch, pool.submit(_look, texts, tokenise())))
                    if len(waiting) > self._num_workers + 1:
                        yield _result(waiting)
                while waiting:
                    yield _result(waiting)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)


def _result(waiting: deque[tuple[Batch, Future[list[Looked]]]]) -> tuple[Batch, list[Looked]]:
    batch, future = waiting.popleft()
    with _saying_who_died():
        return batch, future.result()


@contextmanager
def _saying_who_died() -> Iterator[None]:
    try:
        yield
    except (BrokenProcessPool, OSError, EOFError) as error:
        raise DataError(
            "a worker process died, for want of memory perhaps; run the same command again with fewer --workers or less "
            f"--memory: finished shards are kept. In Python, {_GUARD}"
        ) from error


def _start(
    tokenizer: str, encode_special: bool, filters: Filters, evaluation: EvaluationTexts | None, batch_chars: int
) -> None:
    global _looker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that reads them decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    plain = Tokenizer.from_str(tokenizer)
    plain.encode_special_tokens = encode_special
    _looker = Looker(plain, filters, evaluation, batch_chars)


def _end_with_parent() -> None:
    # Or a kill of the process that reads would leave its workers waiting for ever.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _look(texts: list[str], tokenise: bool) -> list[Looked]:
    assert _looker is not None
    return _looker.look(texts, tokenise=tokenise)
