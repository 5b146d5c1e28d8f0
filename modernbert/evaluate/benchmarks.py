"""Suites → the data sets they ask for: files under a data folder, columns, metric, and how the splits are used.

    --data DIR holds  <name>/<split>.parquet …  as each `Benchmark` names them; none of it comes with this package

`test` is what a score is of, and nothing is chosen by it. Where a set has no validation part, or that part is what is
scored (GLUE, whose test labels are hidden), settings are chosen on a part of the training examples that is held out.
A set that is not there is named as absent, with the reason; only where nothing of a suite is there it is an error.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from modernbert.errors import ConfigError, DataError
from modernbert.text.examples import Kind

Suite: TypeAlias = Literal["probe", "glue", "classify", "ner", "qa", "zh", "mlm"]
SUITES: tuple[Suite, ...] = ("probe", "glue", "classify", "ner", "qa", "zh", "mlm")

LOWER_IS_BETTER = frozenset({"loss", "mse", "bits_per_character", "pseudo_perplexity", "pseudo_bits_per_character"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """One data set as suites use it."""

    name: str
    suites: tuple[Suite, ...]
    kind: Kind | Literal["text"]
    test: str  # scored
    train: str | None = None
    validation: str | None = None  # None: a part of the training examples is held out
    metric: str = "accuracy"
    columns: dict[str, str] = field(default_factory=dict)  # role → column, where guessing would take another
    note: str = ""
    absent: str = ""  # why it cannot be measured, where that is known beforehand

    @property
    def files(self) -> tuple[str, ...]:
        """What must be there."""
        return tuple(file for file in (self.train, self.validation, self.test) if file is not None)


def _set(
    name: str,
    suites: tuple[Suite, ...],
    kind: Kind,
    metric: str = "accuracy",
    *,
    validation: bool = True,
    note: str = "",
    columns: dict[str, str] | None = None,
) -> Benchmark:
    """A set with splits of the usual names."""
    return Benchmark(
        name=name, suites=suites, kind=kind, metric=metric, train=f"{name}/train.parquet", test=f"{name}/test.parquet",
        validation=f"{name}/validation.parquet" if validation else None, note=note, columns=columns or {},
    )  # fmt: skip


_DEV = "scored on the development part, as published results are; settings are chosen on training examples held out"


def _glue(name: str, kind: Kind, metric: str = "accuracy", note: str = "") -> Benchmark:
    return Benchmark(
        name=f"glue/{name}", suites=("glue",), kind=kind, metric=metric, train=f"glue/{name}/train.parquet",
        test=f"glue/{name}/validation.parquet", note=f"{_DEV}{note}",
    )  # fmt: skip


def _missing(name: str, suite: Suite, reason: str) -> Benchmark:
    return Benchmark(name=name, suites=(suite,), kind="pair", test=f"{name}/validation.parquet", absent=reason)


def _text(name: str, note: str = "") -> Benchmark:
    return Benchmark(
        name=name, suites=("mlm",), kind="text", test=f"{name}/validation.jsonl.zst", metric="loss", note=note
    )


_UNSEEN_TEXT = "documents held out from the set's training part"
_TRAINED_ON_MNLI = "is no task of its own: it is scored by a model trained on MNLI, which is not in the data folder"
_NO_TRAINING = "has no training part in the data folder, so nothing can be fine-tuned on it"

BENCHMARKS: tuple[Benchmark, ...] = (
    _set("sst2_sentences", ("classify", "probe"), "classify"),
    _set("movie_review_polarity", ("classify", "probe"), "classify"),
    _set("subjectivity", ("classify", "probe"), "classify"),
    _set("ag_news", ("classify", "probe"), "classify", validation=False, columns={"text": "text"},
         note="trained on a sample of 9,991 of the official 120,000; descriptions without titles"),
    _set("banking77", ("classify", "probe"), "classify", validation=False),
    _set("scicite", ("classify", "probe"), "classify", "macro_f1"),
    _set("20newsgroups", ("classify",), "classify", validation=False, columns={"text": "text"},
         note="long texts; quotes and footers are not removed"),
    _set("imdb", ("classify",), "classify", validation=False, columns={"label": "label"}, note="long texts"),
    _set("pubmedqa", ("classify",), "pair", validation=False, columns={"text": "question", "pair": "context"}),
    _missing("cosqa_pairs", "classify", _NO_TRAINING),
    _missing("snli", "classify", _NO_TRAINING),
    _glue("cola", "classify", "matthews"),
    _glue("sst2", "classify"),
    _glue("mrpc", "pair", "f1"),
    _glue("stsb", "pair", "pearson"),
    _glue("rte", "pair"),
    _glue("wnli", "pair", note="; 71 examples, most of them contradicting training ones: the majority class is hard to beat"),
    _missing("glue/qnli", "glue", _NO_TRAINING),
    _missing("glue/mnli", "glue", "is not in the data folder"),
    _missing("glue/qqp", "glue", "is not in the data folder"),
    _missing("glue/ax", "glue", _TRAINED_ON_MNLI),
    Benchmark(name="stsb", suites=("probe",), kind="pair", test="glue/stsb/test.parquet", metric="pearson",
              note="cosine of the two sentences' vectors, nothing is trained"),
    _set("ner_wnut17", ("ner",), "tag", "f1"),
    _set("ner_ncbi_disease", ("ner",), "tag", "f1"),
    _set("ner_bc5cdr", ("ner",), "tag", "f1"),
    Benchmark(name="qa_squad11_part", suites=("qa",), kind="answer", metric="f1", train="qa_squad11_part/train.parquet",
              test="qa_xquad/en.parquet",
              note="trained on 4,284 tokenised questions of SQuAD's training part, scored on XQuAD en, raw text of its dev part"),
    _set("zh_chnsenticorp", ("zh",), "classify", note="331 of 1,200 test texts are in the training part too"),
    Benchmark(name="zh_thucnews_titles", suites=("zh",), kind="classify", train="zh_thucnews_titles/validation.parquet",
              test="zh_thucnews_titles/test.parquet", note="trained on the published dev part; the training part is not here"),
    Benchmark(name="qa_cmrc2018_zh", suites=("zh", "qa"), kind="answer", metric="f1",
              train="qa_cmrc2018_zh/validation.parquet", test="qa_cmrc2018_zh/trial.parquet",
              note="trained on the published dev part, scored on the trial part; the training part is not here"),
    _text("pretrain_wiki_en", _UNSEEN_TEXT),
    _text("pretrain_books_gutenberg", _UNSEEN_TEXT),
    _text("pretrain_science_ccby", _UNSEEN_TEXT),
    _text("pretrain_docs_pd", _UNSEEN_TEXT),
    _text("pretrain_math_latex", _UNSEEN_TEXT),
    _text("pretrain_code_python", _UNSEEN_TEXT),
    _text("pretrain_wiki_zh", _UNSEEN_TEXT),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What a suite can do with a data folder."""

    present: tuple[Benchmark, ...]
    absent: dict[str, str]  # name → reason


def choose(suite: str, data: str | Path, tasks: tuple[str, ...] = ()) -> Chosen:
    """Find a suite's data sets.

    Args:
        suite: one of `SUITES`.
        data: the folder they lie in.
        tasks: those wanted, by their names; all where none is named.

    Raises:
        ConfigError: an unknown suite, or a task that the suite has not.
        DataError: none of its files is there.
    """
    if suite not in SUITES:
        raise ConfigError(f"suite {suite!r} is unknown; choose among {', '.join(SUITES)}")
    of_suite = [benchmark for benchmark in BENCHMARKS if suite in benchmark.suites]
    names = [benchmark.name for benchmark in of_suite]
    unknown = [task for task in tasks if task not in names]
    if unknown:
        raise ConfigError(f"suite {suite} has no task {unknown[0]!r}; choose among {', '.join(names)}")
    wanted = [benchmark for benchmark in of_suite if not tasks or benchmark.name in tasks]
    absent = {benchmark.name: reason for benchmark in wanted if (reason := _why_absent(benchmark, Path(data)))}
    present = tuple(benchmark for benchmark in wanted if benchmark.name not in absent)
    if not present:
        raise DataError(
            f"{data} has none of the {len(wanted)} data sets of suite {suite}, such as {wanted[0].files[0]}; say where "
            "they are with --data"
        )
    return Chosen(present=present, absent=absent)


def _why_absent(benchmark: Benchmark, data: Path) -> str:
    if benchmark.absent:
        return benchmark.absent
    lacking = [file for file in benchmark.files if not (data / file).is_file()]
    return f"{lacking[0]} is not in the data folder" if lacking else ""
