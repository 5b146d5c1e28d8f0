"""The masked-language loss, and what `fill_mask` answers."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from modernbert import IGNORE, MaskedLM, PackedBatch
from modernbert.errors import DataError
from modernbert.text import load_tokenizer, special_ids

EVERYTHING = 10_000  # more answers than there are tokens


@pytest.fixture
def model(tiny_config, tiny_tokenizer):
    """One that a test may change."""
    return MaskedLM(tiny_config, tiny_tokenizer).draw(0).eval()


def labelled_batch(lengths=(20, 3, 41), seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(0, 300, (length,), generator=generator) for length in lengths]
    labels = [torch.where(torch.rand(len(row), generator=generator) < 0.4, row, IGNORE) for row in rows]
    labels[0][0] = 7
    return PackedBatch.from_sequences(rows, labels)


# The loss


def test_the_loss_at_the_masked_positions_is_the_dense_loss(model):
    batch = labelled_batch()
    output = model(batch)
    output.loss_sum.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    dense = F.cross_entropy(model.logits(batch), batch.labels_T, ignore_index=IGNORE, reduction="sum")
    dense.backward()
    torch.testing.assert_close(output.loss_sum, dense)
    assert output.num_targets == (batch.labels_T != IGNORE).sum()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-5, rtol=1e-4, msg=name)


def test_losses_are_sums_so_that_batches_add_up(model):
    together = labelled_batch((20, 3, 41))
    lengths = together.lengths()
    parts = zip(together.input_ids_T.split(lengths), together.labels_T.split(lengths), strict=True)
    outputs = [model(PackedBatch.from_sequences([ids], [labels])) for ids, labels in parts]
    whole = model(together)
    torch.testing.assert_close(sum(output.loss_sum for output in outputs), whole.loss_sum)
    assert sum(output.num_targets for output in outputs) == whole.num_targets


def test_token_id_0_counts_as_a_label(model):
    batch = PackedBatch.from_sequences([[5, 6, 7]], [[IGNORE, 0, IGNORE]])
    output = model(batch)
    assert output.num_targets == 1
    torch.testing.assert_close(output.loss_sum, -model.logits(batch)[1].log_softmax(-1)[0])


def test_accuracy_counts_the_right_guesses(model):
    with torch.no_grad():
        model.decoder.bias[9] = 100
    labels = [[9, 8, IGNORE, 9], [IGNORE, 0]]
    output = model(PackedBatch.from_sequences([[1, 2, 3, 4], [5, 6]], labels))
    assert output.num_targets == 4
    assert output.metric_sums["accuracy"] == 2


def test_a_batch_without_a_label_costs_nothing_and_can_be_differentiated(model):
    output = model(PackedBatch.from_sequences([[5, 6]], [[IGNORE, IGNORE]]))
    assert (output.num_targets, output.loss_sum.item(), output.metric_sums["accuracy"].item()) == (0, 0.0, 0)
    output.loss_sum.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_an_untrained_model_guesses_evenly(model):
    output = model(labelled_batch())
    assert output.loss_sum.item() / output.num_targets == pytest.approx(torch.tensor(320.0).log().item(), abs=0.1)


def test_dropout_acts_in_training_only(tiny_config, model):
    dropping = MaskedLM(tiny_config, out_dropout=0.5)
    dropping.load_state_dict(model.state_dict())
    batch = labelled_batch()
    assert torch.equal(dropping.eval().encoder(batch), model.encoder(batch))
    assert not torch.allclose(dropping.train().encoder(batch), model.encoder(batch), atol=1e-3)
    assert torch.equal(model.train().encoder(batch), model.eval().encoder(batch))


# fill_mask


TEXTS = [
    "the [MASK] house",
    "[MASK]",
    " [MASK] river",
    "the[MASK]",
    "The old [MASK] and the new[MASK], under [MASK].",
    "a [MASK][MASK] b",
    "[MASK] [MASK]\n\n[MASK]",
    "Caf\u00e9 \u6cb3[MASK] (of [MASK]) \U0001f600",
]


@pytest.mark.parametrize("text", TEXTS)
def test_each_mask_is_answered_best_first_and_filled_in(tiny_model, text):
    answers = tiny_model.fill_mask(text, top_k=4)
    parts = text.split("[MASK]")
    assert len(answers) == len(parts) - 1
    best = [answer[0].text for answer in answers]
    for mask, predictions in enumerate(answers):
        assert 0 < len(predictions) <= 4
        probabilities = [prediction.probability for prediction in predictions]
        assert probabilities == sorted(probabilities, reverse=True) and 0 < sum(probabilities) <= 1
        assert len({prediction.text for prediction in predictions}) == len(predictions)
        for prediction in predictions:
            fillings = [*best[:mask], prediction.text, *best[mask + 1 :], ""]
            assert prediction.filled == "".join(part + fill for part, fill in zip(parts, fillings, strict=True))


@pytest.mark.parametrize("top_k", [1, 2, 7])
def test_as_many_answers_as_asked_for(tiny_model, top_k):
    (predictions,) = tiny_model.fill_mask("the [MASK].", top_k)
    assert len(predictions) == top_k


def test_no_answers_at_all_cannot_be_asked_for(tiny_model):
    with pytest.raises(ValueError, match="top_k=0"):
        tiny_model.fill_mask("the [MASK].", top_k=0)


def pieces(tokenizer, *, after_space):
    """The answers that fit, read off the spelling of the entries: Ġ is a space, Ċ a line break, ĉ a tab."""
    spare = special_ids(tokenizer).never_masked_or_drawn
    fitting = [i for i in range(320) if i not in spare and (tokenizer.id_to_token(i)[0] in "ĠĊĉčċČ") is after_space]
    return {tokenizer.decode([i], skip_special_tokens=False).strip() for i in fitting} - {""}


def test_after_white_space_only_tokens_that_begin_a_word_answer(tiny_model, tiny_tokenizer):
    for text in ("the [MASK] house", "the\n[MASK]", "the  [MASK], "):
        (predictions,) = tiny_model.fill_mask(text, top_k=EVERYTHING)
        assert {p.text for p in predictions if p.text.strip()} == pieces(tiny_tokenizer, after_space=True)


def test_after_a_letter_only_tokens_that_continue_a_word_answer(tiny_model, tiny_tokenizer):
    for text in ("the[MASK] house", "\u6cb3[MASK]", "([MASK]"):
        (predictions,) = tiny_model.fill_mask(text, top_k=EVERYTHING)
        assert {p.text for p in predictions} >= pieces(tiny_tokenizer, after_space=False) - {
            "\x1c",
            "\x85",
            "\xa0",
            "\ufffd",
        }
        assert not any("\ufffd" in p.text for p in predictions)  # half a character is no answer
        assert not any(p.text[:1].isspace() for p in predictions)


def test_at_the_start_of_a_text_both_forms_of_a_word_answer(tiny_model, tiny_tokenizer):
    (predictions,) = tiny_model.fill_mask("[MASK] house", top_k=EVERYTHING)
    found = {p.text for p in predictions if p.text.strip()}
    assert found >= pieces(tiny_tokenizer, after_space=True) | {"T", "t", "!"}


@pytest.mark.parametrize("text", ["the [MASK] house", "[MASK] house"])
def test_no_answer_is_white_space_or_begins_with_it(tiny_model, text):
    (predictions,) = tiny_model.fill_mask(text, top_k=EVERYTHING)
    assert [p.text for p in predictions if p.text.strip() != p.text or not p.text] == []


@pytest.mark.parametrize("joint", [False, True])
def test_no_special_or_spare_token_is_ever_answered(model, tiny_tokenizer, joint):
    never = special_ids(tiny_tokenizer).never_masked_or_drawn
    with torch.no_grad():
        model.decoder.bias[sorted(never)] = 50.0
    names = {tiny_tokenizer.id_to_token(token) for token in never}
    for predictions in model.fill_mask("the[MASK] of[MASK].", top_k=5 if joint else EVERYTHING, joint=joint):
        assert not names & {p.text for p in predictions}
        assert max(p.probability for p in predictions) > 1e-3  # what they would have had is shared out


def test_probabilities_are_those_of_the_model_over_the_tokens_that_can_be_meant(tiny_model, tiny_tokenizer):
    ids = tiny_tokenizer.encode("the[MASK] house").ids
    special = special_ids(tiny_tokenizer)
    logits_V = tiny_model.logits(PackedBatch.from_sequences([ids]))[ids.index(special.mask)].detach()
    logits_V[sorted(special.never_masked_or_drawn)] = float("-inf")
    probs_V = logits_V.softmax(-1)
    (predictions,) = tiny_model.fill_mask("the[MASK] house", top_k=3)
    by_text = {tiny_tokenizer.decode([token]): probs_V[token].item() for token in range(300)}
    for prediction in predictions:
        assert prediction.text == "\ufffd" or prediction.probability == pytest.approx(by_text[prediction.text])


def test_entries_beyond_the_tokenizer_never_answer(tiny_config, tiny_tokenizer):
    model = MaskedLM(tiny_config.replace(vocab_size=384), tiny_tokenizer).draw(0).eval()
    with torch.no_grad():
        model.decoder.bias[330] = 20.0
    for text in ("the[MASK]", "the [MASK]"):
        (predictions,) = model.fill_mask(text)
        assert all(p.text for p in predictions) and predictions[0].probability > 1e-3


@pytest.mark.parametrize("text", ["", "no mask here", "[mask]", "[MASK"])
def test_a_text_without_a_mask_is_refused(tiny_model, text):
    with pytest.raises(DataError, match=r"no \[MASK\] in '.*put one where the answer goes"):
        tiny_model.fill_mask(text)


def test_a_text_longer_than_the_positions_is_refused_with_both_numbers(tiny_model):
    with pytest.raises(DataError, match=r"the text has \d{3} tokens, the model 128 positions; shorten it"):
        tiny_model.fill_mask("the river " * 100 + "[MASK]")
    fits = "!" * 124 + "[MASK]"  # with the two frames and the space before the first word, 128
    assert len(tiny_model.tokenizer.encode(fits).ids) == 128
    assert tiny_model.fill_mask(fits)
    with pytest.raises(DataError, match="129 tokens"):
        tiny_model.fill_mask("!" + fits)


def test_a_model_without_a_tokenizer_says_so(tiny_config):
    with pytest.raises(DataError, match=r"has no tokenizer; load a folder that holds a tokenizer\.json"):
        MaskedLM(tiny_config).draw(0).fill_mask("the [MASK]")


@pytest.mark.parametrize("kind", ["truncation", "padding"])
def test_a_tokenizer_that_cuts_or_pads_answers_like_one_that_does_not(model, tiny_tokenizer, tmp_path, kind):
    text = "[MASK] of the old river and [MASK] mountain house"
    expected = model.fill_mask(text)
    tokenizer = Tokenizer.from_str(tiny_tokenizer.to_str())
    if kind == "truncation":
        tokenizer.enable_truncation(6)
    else:
        tokenizer.enable_padding(length=100, pad_id=special_ids(tiny_tokenizer).pad, pad_token="[PAD]")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    model.tokenizer = load_tokenizer(tmp_path)
    assert model.fill_mask(text) == expected


# Neighbouring masks together


def test_neighbouring_masks_are_answered_as_one(tiny_model):
    text = "[MASK][MASK] of[MASK], the[MASK][MASK][MASK].[MASK]\n.[MASK]"
    answers = tiny_model.fill_mask(text, top_k=3, joint=True)
    assert [len(answer) for answer in answers] == [3] * 5
    best = [answer[0].text for answer in answers]
    for run, predictions in enumerate(answers):
        probabilities = [p.probability for p in predictions]
        assert probabilities == sorted(probabilities, reverse=True)
        for prediction in predictions:
            a, b, c, d, e = (*best[:run], prediction.text, *best[run + 1 :])
            assert prediction.filled == f"{a} of{b}, the{c}.{d}\n.{e}"


def test_a_single_mask_is_answered_alike_jointly_or_not(tiny_model):
    for text in ("the [MASK] house", "the[MASK] house"):
        (alone,) = tiny_model.fill_mask(text, top_k=EVERYTHING)
        (joint,) = tiny_model.fill_mask(text, top_k=5, joint=True)
        whole = [p for p in alone if "\ufffd" not in p.text]  # half a character answers a single mask only
        assert [p.text for p in joint] == [p.text for p in whole[:5]]


def tokens_of(model, text):
    return model.tokenizer.encode("x" + text, add_special_tokens=False).ids[-len(text.encode()) :]


def test_only_whole_characters_answer_neighbouring_masks(model):
    # Six bytes of two characters are likely, all others are not: of 216 strings of three, 32 are one character.
    first, second = tokens_of(model, "\u4e2d"), tokens_of(model, "\u56fd")
    assert len({*first, *second}) == 6
    with torch.no_grad():
        model.decoder.bias[first + second] += 20.0
    (predictions,) = model.fill_mask("\u6211[MASK][MASK][MASK]\u4eba", top_k=60, joint=True)
    texts = [p.text for p in predictions]
    assert len(set(texts)) == len(texts) == 32
    assert all(len(text) == 1 and text >= "\u3400" for text in texts)
    assert {"\u4e2d", "\u56fd"} <= set(texts)
    assert predictions[0].filled == f"\u6211{texts[0]}\u4eba"


def test_a_joint_probability_is_the_product_of_one_token_after_the_other(model):
    character = tokens_of(model, "\u4e2d")
    with torch.no_grad():
        model.decoder.bias[character] += torch.tensor([12.0, 11.0, 10.0])
    text = "\u6211[MASK][MASK][MASK]\u4eba"
    (predictions,) = model.fill_mask(text, top_k=10, joint=True)
    (found,) = [p.probability for p in predictions if p.text == "\u4e2d"]
    special = special_ids(model.tokenizer)
    ids, probability = list(model.tokenizer.encode(text).ids), 1.0
    for token in character:
        position = ids.index(special.mask)
        logits_V = model.logits(PackedBatch.from_sequences([ids]))[position].detach()
        logits_V[sorted(special.never_masked_or_drawn)] = float("-inf")
        probability *= logits_V.softmax(-1)[token].item()
        ids[position] = token
    assert found == pytest.approx(probability, rel=1e-4)


@given(
    text=st.lists(
        st.sampled_from(["[MASK]", "[MASK]", " ", "the", " river", "\u4e2d", "\n", ".", "[", "\u00e9"]), max_size=9
    ),
    joint=st.booleans(),
)
@settings(deadline=None, max_examples=40)
def test_any_text_with_a_mask_is_answered_and_filled(tiny_model, text, joint):
    text = "".join(text)
    if "[MASK]" not in text:
        return
    for predictions in tiny_model.fill_mask(text, top_k=2, joint=joint):
        for prediction in predictions:
            assert "[MASK]" not in prediction.filled and 0 < prediction.probability <= 1
            if joint:
                assert "\ufffd" not in prediction.filled
