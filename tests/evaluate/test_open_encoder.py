"""Any encoder opens by its name, and gives what transformers gives with its own tokenizer."""

import sys

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from modernbert.batch import IGNORE, PackedBatch
from modernbert.errors import CheckpointError, UnsupportedError
from modernbert.evaluate.foreign import is_ours, load_foreign, open_encoder, open_masked
from modernbert.retrieval.encode import encode
from modernbert.tasks.mlm import MaskedLM

transformers = pytest.importorskip("transformers")

WORDS = ["river", "mountain", "the", "of", "old", "new", "stone", "house", "##s", "##ly", "a"]
PAIRS = [("The old river", "a new house"), ("stones of the mountain the of the", "River"), ("the", "newly houses")]
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
KINDS = ("bert", "deberta-v2", "roberta", "modernbert")


def tokenizer_of(kind):
    bos, sep, pad, mask, unk = (
        ("<s>", "</s>", "<pad>", "<mask>", "<unk>")
        if kind == "roberta"
        else ("[CLS]", "[SEP]", "[PAD]", "[MASK]", "[UNK]")
    )
    tokenizer = Tokenizer(
        models.WordPiece({w: i for i, w in enumerate([bos, pad, sep, unk, mask, *WORDS])}, unk_token=unk)
    )
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    double = f" {sep}:1" if kind == "roberta" else ""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {sep}", pair=f"{bos} $A {sep}{double} $B:1 {sep}:1", special_tokens=[(bos, 0), (sep, 2)]
    )
    names = {"cls_token": bos, "sep_token": sep, "pad_token": pad, "mask_token": mask, "unk_token": unk}
    segments = ["token_type_ids"] if kind == "bert" else []
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **names, model_input_names=["input_ids", *segments, "attention_mask"]
    )


def config_of(kind, vocab_size):
    shape = {**SHAPE, "vocab_size": vocab_size, "pad_token_id": 1}
    if kind == "deberta-v2":
        return transformers.DebertaV2Config(
            **shape, relative_attention=True, position_buckets=8, norm_rel_ebd="layer_norm", share_att_key=True,
            pos_att_type=["p2c", "c2p"], position_biased_input=False, type_vocab_size=0, max_position_embeddings=64,
        )  # fmt: skip
    if kind == "roberta":
        return transformers.RobertaConfig(**shape, max_position_embeddings=66, type_vocab_size=1)
    if kind == "modernbert":
        ids = {"bos_token_id": 0, "eos_token_id": 2, "cls_token_id": 0, "sep_token_id": 2}
        return transformers.ModernBertConfig(**shape, max_position_embeddings=64, local_attention=8, **ids)
    return transformers.BertConfig(**shape, max_position_embeddings=64)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    found = {}
    for kind in KINDS:
        torch.manual_seed(0)
        tokenizer = tokenizer_of(kind)
        model = transformers.AutoModelForMaskedLM.from_config(config_of(kind, len(tokenizer)))
        found[kind] = tmp_path_factory.mktemp(kind)
        model.save_pretrained(found[kind])
        tokenizer.save_pretrained(found[kind])
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_pair_of_texts_is_read_as_transformers_reads_it(folders, kind):
    stock = transformers.AutoModel.from_pretrained(folders[kind]).eval()
    outer = transformers.AutoTokenizer.from_pretrained(folders[kind])
    inputs = outer(*(list(texts) for texts in zip(*PAIRS, strict=True)), padding=True, return_tensors="pt")
    encoder, tokenizer = load_foreign(folders[kind])
    batch = PackedBatch.from_sequences(tokenizer.encode(*pair).ids for pair in PAIRS)
    with torch.no_grad():
        theirs = stock(**inputs).last_hidden_state[inputs["attention_mask"].bool()]
        torch.testing.assert_close(encoder(batch), theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_any_encoder_gives_vectors_for_texts(folders, kind):
    model = open_encoder(folders[kind])
    vectors = encode(model, [text for pair in PAIRS for text in pair])
    assert vectors.shape == (6, 32) and abs(float((vectors**2).sum()) - 6) < 1e-4


def test_a_modernbert_is_opened_by_us_and_gives_the_same_either_way(folders):
    assert is_ours(folders["modernbert"]) and not is_ours(folders["bert"])
    ours, (theirs, _) = open_encoder(folders["modernbert"]), load_foreign(folders["modernbert"])
    batch = PackedBatch.from_sequences([[0, 5, 6, 7, 2], [0, 9, 2]])
    with torch.no_grad():
        torch.testing.assert_close(ours.encoder(batch), theirs(batch), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_masked_loss_is_transformers_own(folders, kind):
    stock = transformers.AutoModelForMaskedLM.from_pretrained(folders[kind]).eval()
    model = open_masked(folders[kind])
    rows, labels = [[0, 5, 4, 7, 8, 2], [0, 4, 2]], [[IGNORE, IGNORE, 6, 7, IGNORE, IGNORE], [IGNORE, 9, IGNORE]]
    with torch.no_grad():
        found = model(PackedBatch.from_sequences(rows, labels))
        logits = [stock(input_ids=torch.tensor([row])).logits[0] for row in rows]
        losses = [F.cross_entropy(x, torch.tensor(y), reduction="none") for x, y in zip(logits, labels, strict=True)]
    wanted = torch.cat([x[torch.tensor(y) != IGNORE] for x, y in zip(losses, labels, strict=True)])
    torch.testing.assert_close(found.losses_M, wanted, atol=2e-5, rtol=1e-4)
    assert found.num_targets == 3
    assert isinstance(model, MaskedLM) == (kind == "modernbert")


def test_a_checkpoint_that_lacks_weights_is_refused_and_a_missing_pooler_is_none(folders, tmp_path):
    tokenizer_of("bert").save_pretrained(tmp_path)
    transformers.AutoModel.from_config(config_of("bert", 16)).save_pretrained(tmp_path)
    open_encoder(tmp_path)
    with pytest.raises(CheckpointError, match="tensors missing"):
        open_masked(tmp_path)


def test_a_model_that_reads_in_one_direction_is_refused(tmp_path):
    transformers.GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=1).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedError, match="is a gpt2, which reads in one direction"):
        open_encoder(tmp_path)


def test_without_transformers_the_extra_is_named(folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UnsupportedError, match=r"modernbert\[hf\]"):
        open_encoder(folders["bert"])


def test_an_unknown_kind_of_model_is_refused_in_one_line(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "nobody-knows"}')
    with pytest.raises(CheckpointError, match="cannot open it") as refusal:
        open_encoder(tmp_path)
    assert "\n" not in str(refusal.value)


def test_nothing_is_printed_while_a_model_is_opened(folders, capfd):
    open_encoder(folders["bert"])
    assert capfd.readouterr() == ("", "")
