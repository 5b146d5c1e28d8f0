"""The masked loss and pseudo-perplexity are what they are called, and compare models by character."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from modernbert.batch import PackedBatch
from modernbert.errors import CheckpointError, ConfigError
from modernbert.evaluate.pseudo import MlmSettings, _Reader, evaluate_mlm, passages_of, pseudo_losses, texts_of
from modernbert.evaluate.score import ScoreFile
from modernbert.runtime import Runtime
from modernbert.tasks import EncoderModel

zstandard = pytest.importorskip("zstandard")
SMALL = MlmSettings(
    max_length=40, characters=1200, passages=3, passage_characters=40, seeds=(0, 1), tokens_per_batch=200
)
TEXTS = [f"The old river of stone walks number {i} under a quiet mountain in the morning." * 3 for i in range(8)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name, texts in (("pretrain_wiki_en", TEXTS), ("pretrain_wiki_zh", ["山石林中有人读信。" * 20])):
        (folder / name).mkdir()
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (folder / name / "validation.jsonl.zst").write_bytes(zstandard.compress(lines.encode()))
    return folder


@pytest.fixture(scope="module")
def scores(tiny_model, data):
    found = evaluate_mlm(tiny_model, data, name="tiny", settings=SMALL)
    return {(score.task, score.metric): score for score in found}


def test_each_token_is_masked_alone_and_all_of_them(tiny_model):
    reader, runtime = _Reader(tiny_model, SMALL), Runtime.detect(device="cpu", precision="float32")
    ids_T = reader.framed(reader.ids_of("The old river sings"))
    found = pseudo_losses(tiny_model, ids_T, reader, 30, runtime)
    wanted = []
    for place in range(1, len(ids_T) - 1):  # one at a time, the slow way
        masked = torch.tensor(ids_T)
        masked[place] = reader.special.mask
        with torch.no_grad():
            logits = tiny_model.logits(PackedBatch.from_sequences([masked]), torch.tensor([place]))
        wanted.append(F.cross_entropy(logits, torch.tensor(ids_T[place : place + 1])).item())
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


def test_pseudo_perplexity_is_that_of_its_passages(tiny_model, data, scores):
    reader, runtime = _Reader(tiny_model, SMALL), Runtime.detect(device="cpu", precision="float32")
    texts = texts_of(data / "pretrain_wiki_en/validation.jsonl.zst", SMALL.characters)
    passages = passages_of(texts, 3, 40)
    losses = [pseudo_losses(tiny_model, reader.framed(reader.ids_of(p)), reader, 200, runtime) for p in passages]
    nats, tokens = sum(of.sum() for of in losses), sum(map(len, losses))
    assert scores["pretrain_wiki_en", "pseudo_perplexity"].value == pytest.approx(math.exp(nats / tokens), rel=1e-4)
    bits = scores["pretrain_wiki_en", "pseudo_bits_per_character"].value
    assert bits == pytest.approx(nats / math.log(2) / sum(map(len, passages)), rel=1e-4)


def test_bits_a_character_are_the_loss_spread_over_the_text(scores):
    for task in ("pretrain_wiki_en", "pretrain_wiki_zh"):
        loss, bits = scores[task, "loss"], scores[task, "bits_per_character"]
        share = loss.details["scored_tokens"] / loss.details["characters"]
        assert bits.values == pytest.approx([x / math.log(2) * share for x in loss.values])
        assert 4.5 < loss.value < 7 and loss.n == 2 and loss.sd > 0  # untrained: about ln 320
    assert scores["pretrain_wiki_zh", "loss"].details["keeps_text"]


def test_the_loss_by_position_adds_up_to_the_loss(tiny_model, data):
    settings = MlmSettings(max_length=128, characters=1200, passages=1, passage_characters=10, seeds=(0,))
    found = {
        score.metric: score for score in evaluate_mlm(tiny_model, data, settings=settings, tasks=("pretrain_wiki_en",))
    }
    by_position = found["loss"].details["by_position"]
    targets = sum(entry["targets"] for entry in by_position)
    assert sum(entry["loss"] * entry["targets"] for entry in by_position) / targets == pytest.approx(
        found["loss"].value
    )


def test_what_is_measured_is_not_measured_again(tiny_model, data, tmp_path, monkeypatch):
    import modernbert.evaluate.pseudo as pseudo

    file = ScoreFile(tmp_path / "scores.jsonl")
    arguments = {"settings": SMALL, "scores": file, "tasks": ("pretrain_wiki_en",)}
    first = [score.to_line() for score in evaluate_mlm(tiny_model, data, **arguments)]
    lines = file.path.read_text().splitlines()
    assert first == lines and len(lines) == 4
    file.path.write_text("\n".join(lines[:3]) + "\n")  # a kill between two lines
    assert len(list(evaluate_mlm(tiny_model, data, **arguments))) == 4 and len(list(file)) == 4
    monkeypatch.setattr(pseudo, "_masked", None)
    assert [score.metric for score in evaluate_mlm(tiny_model, data, **arguments)] == [s.metric for s in file]


def test_every_model_is_given_the_same_text():
    passages = passages_of(TEXTS, 12, 50)
    assert passages == passages_of(TEXTS, 12, 50) and len(set(passages)) > 8
    assert all(0 < len(passage) <= 50 and passage in TEXTS[i % 8] for i, passage in enumerate(passages))
    words = set(" ".join(TEXTS).split())
    assert all(set(passage.split()) <= words for passage in passages)
    assert passages_of(["short"], 2, 50) == ["short", "short"]


def test_documents_are_cut_and_counted_in_characters(data):
    texts = texts_of(data / "pretrain_wiki_en/validation.jsonl.zst", 500)
    assert sum(map(len, texts)) == 500 and texts[0] == TEXTS[0]


def test_a_model_without_an_mlm_head_and_settings_out_of_range_are_refused(tiny_config, tiny_tokenizer, data, tmp_path):
    EncoderModel(tiny_config, tiny_tokenizer).draw(0).save(tmp_path / "bare")
    with pytest.raises(CheckpointError, match="no MLM head"):
        list(evaluate_mlm(tmp_path / "bare", data))
    with pytest.raises(ConfigError, match=r"rate=1\.5"):
        MlmSettings(rate=1.5)


def test_another_librarys_model_is_measured_by_the_same_protocol(data, tmp_path):
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = [*names, *sorted({w.strip(".").lower() for w in " ".join(TEXTS).split()} - {"old"}), "."]
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    special = {f"{name.strip('[]').lower()}_token": name for name in names}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(tmp_path)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=36,
    )  # fmt: skip
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path)
    found = {s.metric: s for s in evaluate_mlm(tmp_path, data, settings=SMALL, tasks=("pretrain_wiki_en",))}
    assert found["loss"].value == pytest.approx(math.log(len(vocabulary)), rel=0.2)
    assert found["loss"].details["unknown"] > 0 and not found["loss"].details["keeps_text"]
    assert found["loss"].protocol["max_length"] == 36
