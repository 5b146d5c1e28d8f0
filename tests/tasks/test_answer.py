"""Question answering: the loss against a loop, windows against the tokenizer's own, answers against the SQuAD scripts'."""

import itertools
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from modernbert.batch import Feature, idle_batch, pack_features
from modernbert.errors import ConfigError, DataError
from modernbert.model import hub
from modernbert.tasks.answer import LABELS, Answerer, segment_log_sums
from modernbert.tasks.head import HeadSettings, LossSettings
from modernbert.tasks.spans import Window, best_span, windows_of
from modernbert.text.examples import AnswerExample
from modernbert.text.tokenizer import load_tokenizer

SHARED = Path(__file__).parents[2].parent / "shared"
LENGTH, STRIDE = 48, 12
GREEN = "The old house stands under the mountain. A child reads a letter between green stones in the quiet morning."


def settings_of(max_length=LENGTH, stride=STRIDE):
    return HeadSettings(kind="answer", labels=LABELS, problem="spans", max_length=max_length, stride=stride)


@pytest.fixture
def answerer(tiny_config, tiny_tokenizer):
    return Answerer(tiny_config, tiny_tokenizer, settings_of()).draw(0).eval()


def asked(context=GREEN, *answers, question="What does the child read?", **more):
    """An example; answers are texts, each at its first place, or (text, place)."""
    placed = tuple((a, context.index(a)) if isinstance(a, str) else a for a in answers)
    return AnswerExample(question=question, context=context, answers=placed, **more)


def windows_and_passage(example, tokenizer, max_length=LENGTH, stride=STRIDE):
    passages, windows = windows_of([example], tokenizer, max_length=max_length, stride=stride)
    return windows[0], passages[0]


def logits_that_say(windows, spans, cls=(0.0, 0.0)):
    """Logits of windows, low but at passage tokens: {(first, last): (start logit, end logit)}."""
    found = []
    for window in windows:
        logits_T2 = np.full((len(window.ids_T), 2), -9.0, dtype=np.float32)
        logits_T2[0] = cls
        for (first, last), (start, end) in spans.items():
            if window.start <= first and last < window.start + window.length:
                logits_T2[first - window.start + window.place, 0] = start
                logits_T2[last - window.start + window.place, 1] = end
        found.append(logits_T2)
    return found


# The loss


def looped_losses(logits_T2, batch):
    """The slow twin: a cross-entropy for each document."""
    documents = logits_T2.split(batch.lengths())
    return torch.stack(
        [
            (F.cross_entropy(d[:, 0], t[0]) + F.cross_entropy(d[:, 1], t[1])) / 2
            for d, t in zip(documents, batch.targets_B, strict=True)
        ]
    )


def random_batch(seed=0, lengths=(3, 48, 1, 17, 30)):
    draw = np.random.default_rng(seed)
    return pack_features(
        [
            Feature(ids_T=draw.integers(5, 300, n).astype(np.int32), target=draw.integers(0, n, 2).astype(np.int64))
            for n in lengths
        ]
    )


def test_the_loss_and_its_gradients_are_those_of_a_loop_over_documents(answerer):
    batch = random_batch()
    output = answerer(batch)
    expected_B = looped_losses(answerer.logits(batch), batch)
    torch.testing.assert_close(output.losses_M, expected_B.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.loss_sum, expected_B.sum(), rtol=1e-5, atol=1e-5)
    assert output.num_targets == 5
    parameters = list(answerer.parameters())
    ours = torch.autograd.grad(output.loss_sum, parameters)
    theirs = torch.autograd.grad(expected_B.sum(), parameters)
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-6)
    assert any(gradient.abs().max() > 1e-3 for gradient in ours)


def test_logits_of_thousands_overflow_no_sum():
    batch = random_batch()
    logits_T2 = torch.randn(batch.num_tokens, 2) * 3_000
    top_B2, log_sums_B2 = segment_log_sums(logits_T2, batch)
    documents = logits_T2.split(batch.lengths())
    torch.testing.assert_close(log_sums_B2, torch.stack([d.logsumexp(0) for d in documents]))
    torch.testing.assert_close(top_B2, torch.stack([d.amax(0) for d in documents]))


def test_a_document_s_loss_is_the_same_whatever_it_is_packed_with(answerer):
    batch = random_batch()
    first = pack_features([Feature(ids_T=batch.input_ids_T[:3].numpy(), target=batch.targets_B[0].numpy())])
    torch.testing.assert_close(answerer(first).losses_M, answerer(batch).losses_M[:1], rtol=1e-5, atol=1e-5)


def test_accuracy_counts_documents_whose_start_and_end_are_both_right(answerer):
    batch = random_batch(lengths=(9, 9, 9))
    logits = torch.zeros(27, 2)
    targets_B2 = batch.targets_B
    for document, targets in enumerate(targets_B2.tolist()):
        for column, target in enumerate(targets):
            wrong = document == 1 and column == 1
            logits[9 * document + (target + wrong) % 9, column] = 5.0
    answerer.logits = lambda _: logits
    assert int(answerer(batch).metric_sums["accuracy"]) == 2


def test_a_rank_without_examples_keeps_every_weight_in_the_graph(answerer):
    output = answerer(idle_batch())
    output.loss_sum.backward()
    assert output.num_targets == 0 and output.loss_sum == 0
    assert all(p.grad is not None and not p.grad.any() for p in answerer.parameters())


def test_class_weights_and_smoothing_are_refused_not_ignored(answerer):
    answerer.loss = LossSettings(label_smoothing=0.1)
    with pytest.raises(ConfigError, match="no classes to weigh or smooth"):
        answerer(random_batch())


def test_a_head_of_three_outputs_is_no_answerer(tiny_config, tiny_tokenizer):
    with pytest.raises(ConfigError, match="2 outputs"):
        Answerer(
            tiny_config,
            tiny_tokenizer,
            HeadSettings(kind="answer", labels=("a", "b", "c"), problem="spans", max_length=9),
        )


# Windows


@pytest.mark.parametrize(("max_length", "stride"), [(48, 12), (40, 0), (64, 20), (30, 11), (500, 128)])
def test_windows_are_those_of_the_tokenizer_s_own_truncation(tiny_tokenizer, max_length, stride):
    example = asked(" ".join([GREEN] * 4), question="Who reads?")
    windows, _ = windows_and_passage(example, tiny_tokenizer, max_length, stride)
    tiny_tokenizer.enable_truncation(max_length, stride=stride, strategy="only_second")
    try:
        encoding = tiny_tokenizer.encode(example.question, example.context)
    finally:
        tiny_tokenizer.no_truncation()
    parts = [encoding, *encoding.overflowing]
    assert [window.ids_T.tolist() for window in windows] == [part.ids for part in parts]
    for window, part in zip(windows, parts, strict=True):
        places = [place for place, text in enumerate(part.sequence_ids) if text == 1]
        assert places == list(range(window.place, window.place + window.length))


def test_the_target_s_text_is_the_answer_in_each_window_that_has_it_whole(answerer, tiny_tokenizer):
    context = " ".join([GREEN] * 4)
    example = asked(context, ("green stones", context.rindex("green stones")))
    windows, passage = windows_and_passage(example, tiny_tokenizer)
    features = answerer.features([example])
    assert len(features) == len(windows) > 4
    said = []
    for window, feature in zip(windows, features, strict=True):
        first, last = feature.target.tolist()
        if (first, last) != (0, 0):
            places = [place - window.place + window.start for place in (first, last)]
            start, stop = passage.characters_of(*places)
            said.append(context[start:stop])
            assert start == context.rindex("green stones")
    assert said and set(said) == {"green stones"}
    assert len(said) < len(windows)


def test_an_answer_that_a_window_cuts_is_none_of_its_answers():
    window = Window(ids_T=np.zeros(20, dtype=np.int32), example=0, start=10, place=5, length=10)
    assert window.target((10, 19)).tolist() == [5, 14]
    assert window.target((9, 12)).tolist() == window.target((18, 20)).tolist() == window.target(None).tolist() == [0, 0]


@pytest.mark.parametrize("answer", ["The", "The old house", "morning.", GREEN])
def test_answers_at_the_very_first_and_last_token_are_found(tiny_tokenizer, answer):
    windows, passage = windows_and_passage(asked(GREEN, answer), tiny_tokenizer, 200)
    first, last = passage.tokens_of(asked(GREEN, answer))
    start, stop = passage.characters_of(first, last)
    assert GREEN[start:stop] == answer
    found = best_span(passage, windows, logits_that_say(windows, {(first, last): (5.0, 5.0)}), 100)
    assert found.characters == (start, stop)


def test_white_space_around_an_answer_is_no_part_of_it(tiny_tokenizer):
    context = "  The old\n\n house   stands. "
    _, passage = windows_and_passage(asked(context), tiny_tokenizer)
    for answer in ("old\n\n house", " old", "stands. ", "  The"):
        start, stop = passage.characters_of(*passage.tokens_of(asked(context, answer)))
        assert context[start:stop] == answer.strip()
    assert not passage.is_blank_T.all() and passage.is_blank_T.any()


def test_bytes_of_one_character_all_have_its_place(tiny_tokenizer):
    context = "北京是中国的首都。"
    _, passage = windows_and_passage(asked(context), tiny_tokenizer)
    assert len(passage.ids_T) > len(context)  # the vocabulary has no Chinese: three bytes a character
    first, last = passage.tokens_of(asked(context, "中国"))
    assert last - first + 1 == 6
    assert passage.characters_of(first, last) == (3, 5) == passage.characters_of(first + 2, last - 2)


def test_of_several_answers_the_first_is_learnt(answerer):
    targets = [
        answerer.features([asked(GREEN, *answers)])[0].target.tolist() for answers in (["house", "old"], ["house"])
    ]
    assert targets[0] == targets[1] != [0, 0]


def test_an_example_without_an_answer_points_at_the_first_token_and_an_unlabelled_one_nowhere(answerer):
    assert answerer.features([asked(GREEN)])[0].target.tolist() == [0, 0]
    unlabelled = AnswerExample(question="Who?", context=GREEN)
    assert answerer.features([unlabelled])[0].target is None


@pytest.mark.parametrize(("text", "place"), [("house", 9), ("castle", 8), ("house", -98), ("house", 10_000)])
def test_an_answer_that_is_not_at_its_place_is_refused_by_line(answerer, text, place):
    with pytest.raises(DataError, match=r"dev\.jsonl:7: the answer .* is not at character"):
        answerer.features([asked(GREEN, (text, place), where="dev.jsonl:7")])


def test_an_answer_of_white_space_is_refused(answerer):
    with pytest.raises(DataError, match="gives no token"):
        answerer.features([asked(GREEN, (" ", 3))])


def test_a_question_longer_than_half_a_window_is_cut_where_its_passage_needs_the_room_and_that_is_said(
    answerer, tiny_tokenizer, caplog
):
    long = asked(GREEN * 3, question="Where " * 40)
    with caplog.at_level(logging.WARNING):
        windows, passage = windows_and_passage(long, tiny_tokenizer)
    assert "1 of 1 questions" in caplog.text
    assert {window.place for window in windows} == {1 + (LENGTH - 3) // 2 + 1}
    assert all(len(window.ids_T) <= LENGTH for window in windows)
    assert windows[-1].start + windows[-1].length == len(passage.ids_T)
    assert answerer.decide([long])[0]["question"] == long.question

    caplog.clear()
    windows, _ = windows_and_passage(asked("A stone.", question="Where under the mountain? " * 2), tiny_tokenizer)
    assert windows[0].place > 1 + (LENGTH - 3) // 2 + 1 and not caplog.text  # there is room

    windows, passage = windows_and_passage(
        asked("A stone.", question="Where " * 40), tiny_tokenizer
    )  # shorter than stride
    assert [window.length for window in windows] == [len(passage.ids_T)] and len(windows[0].ids_T) == LENGTH


def test_an_answer_too_long_for_any_window_is_said(answerer, caplog):
    with caplog.at_level(logging.WARNING):
        features = answerer.features([asked(GREEN * 2, GREEN)])
    assert "1 of 1 answers are too long" in caplog.text
    assert not np.any([feature.target for feature in features])


@pytest.mark.parametrize(("max_length", "stride"), [(48, 22), (48, 400), (48, -1), (3, 0)])
def test_a_stride_that_leaves_no_step_is_refused(tiny_tokenizer, max_length, stride):
    with pytest.raises(ConfigError, match="stride="):
        windows_and_passage(asked(), tiny_tokenizer, max_length, stride)


def test_a_tokenizer_without_a_first_token_is_refused(tiny_tokenizer):
    bare = type(tiny_tokenizer).from_str(tiny_tokenizer.to_str())
    bare.post_processor = None
    with pytest.raises(DataError, match="special token before"):
        windows_and_passage(asked(), bare)


# Answers


def reference_answer(windows, logits, *, n_best, max_tokens, blank_T):
    """As the SQuAD scripts choose: (score, first, last) of the best spans of each window's best starts and ends."""
    candidates = {}
    null = min(float(w[0, 0] + w[0, 1]) for w in logits)
    for window, of_window in zip(windows, logits, strict=True):
        starts = np.argsort(-of_window[:, 0])[:n_best].tolist()
        ends = np.argsort(-of_window[:, 1])[:n_best].tolist()
        for start, end in itertools.product(starts, ends):
            inside = range(window.place, window.place + window.length)
            if start not in inside or end not in inside or end < start or end - start + 1 > max_tokens:
                continue
            first, last = (place - window.place + window.start for place in (start, end))
            if blank_T[first] or blank_T[last]:
                continue
            score = float(of_window[start, 0] + of_window[end, 1])
            candidates[first, last] = max(score, candidates.get((first, last), -np.inf))
    return null, candidates


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("max_tokens", [1, 4, 30, 500])
def test_the_best_span_and_its_probability_are_those_of_trying_every_span(tiny_tokenizer, seed, max_tokens):
    example = asked("\n\n  ".join([GREEN] * 3))
    windows, passage = windows_and_passage(example, tiny_tokenizer)
    draw = np.random.default_rng(seed)
    logits = [draw.normal(0, 3, (len(window.ids_T), 2)).astype(np.float32) for window in windows]
    null, candidates = reference_answer(
        windows, logits, n_best=LENGTH, max_tokens=max_tokens, blank_T=passage.is_blank_T
    )
    found = best_span(passage, windows, logits, max_tokens)
    (first, last), best = max(candidates.items(), key=lambda item: item[1])
    assert found.characters == passage.characters_of(first, last)
    total = np.logaddexp.reduce([null, *candidates.values()])
    assert found.score == pytest.approx(np.exp(best - total), rel=1e-4)
    assert found.no_answer_score == pytest.approx(np.exp(null - total), rel=1e-4)
    assert found.advantage == pytest.approx(best - null, abs=1e-5)


def test_the_same_span_in_two_windows_counts_once_with_its_better_score(tiny_tokenizer):
    windows, passage = windows_and_passage(asked(" ".join([GREEN] * 2)), tiny_tokenizer)
    shared = windows[1].start + 1  # a token that the first two windows have
    assert shared < windows[0].start + windows[0].length
    logits = logits_that_say(windows, {(shared, shared): (4.0, 4.0)})
    once = best_span(passage, windows, [*logits[:1], *logits_that_say(windows[1:], {})], 1)
    twice = best_span(passage, windows, logits, 1)
    assert twice.characters == once.characters == passage.characters_of(shared, shared)
    assert twice.score == pytest.approx(once.score, rel=1e-6)  # not counted twice
    logits[1] = logits[1] + np.where(logits[1] == 4.0, 1.0, 0.0).astype(np.float32)
    assert best_span(passage, windows, logits, 1).advantage == pytest.approx(10.0)


def answers_for(answerer, example, spans, cls):
    windows, _ = windows_and_passage(example, answerer.tokenizer)
    answerer.outputs = lambda features: logits_that_say(windows, spans, cls)
    return answerer.decide([example])[0]


def test_no_answer_is_said_only_by_a_model_that_may_abstain_and_above_its_threshold(answerer):
    example = asked(GREEN, id="q1")
    said = answers_for(answerer, example, {(2, 3): (2.0, 2.0)}, cls=(3.0, 3.0))
    assert said["id"] == "q1" and said["answer"] == GREEN[said["start"] : said["end"]] != ""
    assert said["no_answer_score"] > said["score"]
    answerer.may_abstain = True
    none = answers_for(answerer, example, {(2, 3): (2.0, 2.0)}, cls=(3.0, 3.0))
    assert none["answer"] is none["start"] is none["end"] is None
    assert none["score"] == none["no_answer_score"] > 0.5
    answerer.null_threshold = 2.0  # the advantage of no answer: not more than that
    assert answers_for(answerer, example, {(2, 3): (2.0, 2.0)}, cls=(3.0, 3.0))["answer"] == said["answer"]


def test_one_window_with_the_answer_outweighs_those_that_rightly_have_none(answerer):
    answerer.may_abstain = True
    example = asked(" ".join([GREEN] * 3))
    windows, _ = windows_and_passage(example, answerer.tokenizer)
    logits = logits_that_say(windows, {}, cls=(8.0, 8.0))
    logits[2] = logits_that_say(windows, {(windows[2].start + 4, windows[2].start + 5): (6.0, 6.0)}, cls=(0.0, 0.0))[2]
    answerer.outputs = lambda features: logits
    assert answerer.decide([example])[0]["answer"]


@pytest.mark.parametrize("context", ["", "   \n "])
def test_an_empty_passage_has_no_answer_even_if_the_model_may_not_abstain(answerer, context):
    said = answerer.predict([("Where is the house?", context)])
    assert said == [
        {
            "question": "Where is the house?",
            "answer": None,
            "start": None,
            "end": None,
            "score": 1.0,
            "no_answer_score": 1.0,
        }
    ]
    assert [f.target.tolist() for f in answerer.features([asked(context)])] == [[0, 0]]


def test_an_empty_question_is_read_as_special_tokens_alone(answerer):
    (said,) = answerer.predict([("", GREEN)])
    assert said["answer"] == GREEN[said["start"] : said["end"]]
    assert len(answerer.features([asked(GREEN, question="")])) >= 1


def test_a_passage_of_more_than_8192_tokens_is_read_to_its_end(answerer):
    context = " ".join([GREEN] * 260)
    answer = asked(context, ("green stones", context.rindex("green stones")))
    windows, passage = windows_and_passage(answer, answerer.tokenizer, 384, 128)
    assert len(passage.ids_T) > 8_192
    assert windows[-1].start + windows[-1].length == len(passage.ids_T)
    tokens = passage.tokens_of(answer)
    found = best_span(passage, windows, logits_that_say(windows, {tokens: (5.0, 5.0)}), 30)
    assert context[slice(*found.characters)] == "green stones" and found.characters[0] == context.rindex("green stones")
    targets = [f.target.tolist() for f in answerer.features([answer])]
    assert targets[-1] != [0, 0] and targets[0] == [0, 0]
    (said,) = answerer.predict([("What?", context)])
    assert said["answer"] == context[said["start"] : said["end"]]


def test_many_questions_at_once_are_answered_as_each_alone(answerer):
    items = [("Who reads?", GREEN), ("Where?", " ".join([GREEN] * 3)), ("", ""), ("What?", "A stone.")]
    together = answerer.predict(items)
    for item, said in zip(items, together, strict=True):
        (alone,) = answerer.predict([item])
        assert {k: v for k, v in said.items() if "score" not in k} == {
            k: v for k, v in alone.items() if "score" not in k
        }
        assert said["score"] == pytest.approx(alone["score"], rel=1e-3)


def test_items_are_dicts_pairs_or_examples(answerer):
    example = AnswerExample(question="Who?", context=GREEN, id="7")
    dicts = answerer.predict({"question": "Who?", "context": GREEN, "id": 7, "title": "left alone"})
    assert dicts == answerer.predict([example]) == [{"id": "7"} | a for a in answerer.predict([["Who?", GREEN]])]


@pytest.mark.parametrize("item", ["a text", ("a", None), {"question": "Who?"}, ("a", "b", "c"), None])
def test_other_items_are_refused_in_one_line(answerer, item):
    with pytest.raises(DataError, match=r"item 2 is .*; give a list of pairs") as refusal:
        answerer.predict([("Who?", GREEN), item])
    assert "\n" not in str(refusal.value)


# What examples teach about choosing, and the folder


def test_a_model_may_abstain_and_answer_at_length_as_its_examples_do(answerer):
    short = [asked(GREEN, "house"), asked(GREEN, "child")]
    answerer.adapt(short)
    assert (answerer.may_abstain, answerer.max_answer_tokens) == (False, 30)
    answerer.adapt([*short, asked(GREEN), asked(GREEN, GREEN)])
    assert answerer.may_abstain and answerer.max_answer_tokens > 30
    answerer.adapt([asked(GREEN)])
    assert (answerer.may_abstain, answerer.max_answer_tokens) == (True, 30)


def test_the_folder_says_how_answers_are_chosen(answerer, tmp_path):
    answerer.may_abstain, answerer.null_threshold, answerer.max_answer_tokens = True, -1.5, 77
    config = hub.read_config(answerer.save(tmp_path / "saved"))
    again = Answerer(config, None, HeadSettings.from_values(
        config.extra, kind="answer", problem="spans", num_outputs=2, max_length=99
    ))  # fmt: skip
    assert (again.may_abstain, again.null_threshold, again.max_answer_tokens) == (True, -1.5, 77)
    assert again.settings == answerer.settings


def padded(features, pad):
    lengths = [len(feature.ids_T) for feature in features]
    ids = torch.full((len(features), max(lengths) + 7), pad)
    mask = torch.zeros_like(ids)
    for row, feature in enumerate(features):
        ids[row, : lengths[row]] = torch.from_numpy(feature.ids_T)
        mask[row, : lengths[row]] = 1
    return {"input_ids": ids, "attention_mask": mask}


def assert_same_logits(ours, theirs, features):
    with torch.no_grad():
        output = theirs(**padded(features, ours.config.pad_token_id))
    for row, logits_T2 in enumerate(ours.outputs(features)):
        reference = torch.stack([output.start_logits, output.end_logits], -1)[row, : len(logits_T2)]
        assert reference.std() > 1e-3
        np.testing.assert_allclose(logits_T2, reference.numpy(), atol=1e-4)


def some_features(answerer):
    """Longer than the window of attention (8 tokens), and of different lengths."""
    return answerer.features([asked(GREEN, "house"), asked("A child.", "child"), asked(GREEN, question="")])


def test_a_saved_folder_gives_the_same_logits_and_loss_in_transformers(answerer, tmp_path):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.ModernBertForQuestionAnswering.from_pretrained(answerer.save(tmp_path / "saved")).eval()
    assert theirs.config.num_labels == 2 and theirs.config.architectures == ["ModernBertForQuestionAnswering"]
    features = some_features(answerer)
    assert len({len(f.ids_T) for f in features}) > 1 and min(len(f.ids_T) for f in features) > 8
    assert_same_logits(answerer, theirs, features)
    for feature in features:  # unpadded: of padded rows transformers takes the padding for places, too
        start, end = (torch.tensor([place]) for place in feature.target.tolist())
        ids = torch.from_numpy(feature.ids_T)[None].long()
        reference = theirs(input_ids=ids, start_positions=start, end_positions=end).loss
        torch.testing.assert_close(answerer(pack_features([feature])).loss_sum, reference, rtol=1e-4, atol=1e-4)


def test_a_folder_of_transformers_gives_the_same_logits_here(answerer, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(3)
    config = transformers.AutoConfig.from_pretrained(answerer.save(tmp_path / "shape"))
    config.id2label = {0: "LABEL_0", 1: "LABEL_1"}
    theirs = transformers.ModernBertForQuestionAnswering(config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    config = hub.read_config(tmp_path / "theirs")
    settings = HeadSettings.from_values(config.extra, kind="answer", problem="spans", num_outputs=2, max_length=LENGTH)
    ours = Answerer(config, answerer.tokenizer, settings).eval()
    assert settings.labels == ("LABEL_0", "LABEL_1")
    hub.load_tensors(ours, hub.read_tensors(tmp_path / "theirs"), origin=tmp_path)
    assert_same_logits(ours, theirs, some_features(answerer))


def test_a_small_model_learns_where_answers_are_and_where_there_are_none(tiny_config, tiny_tokenizer):
    torch.manual_seed(0)
    model = Answerer(tiny_config, tiny_tokenizer, settings_of(64, 16)).draw(0).train()
    places = ("house", "mountain", "forest", "river", "stone", "letter")
    examples = [
        asked(
            f"The quiet morning. The {there} is {colour}.",
            *([colour] if there == place else []),
            question=f"The {place}?",
        )
        for there, place, colour in itertools.product(places[:3], places[:3], ("green", "old", "new"))
    ]
    assert Counter(bool(example.answers) for example in examples) == {True: 9, False: 18}
    model.adapt(examples)
    batch = pack_features(model.features(examples))
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(90):
        optimizer.zero_grad()
        output = model(batch)
        (output.loss_sum / output.num_targets).backward()
        optimizer.step()
    said = model.predict([(example.question, example.context) for example in examples])
    assert [answer["answer"] for answer in said] == [e.answers[0][0] if e.answers else None for e in examples]
    assert min(answer["score"] for answer in said) > 0.5


# Real passages

QUICK = {"qa_squad11_part/train": 0.001, "qa_xquad/en": 0.012, "qa_xquad/zh": 0.01, "qa_cmrc2018_zh/validation": 0.01}
SLOW = {"qa_xquad/ar": 0.01, "qa_xquad/ru": 0.04, "qa_xquad/de": 0.01, "qa_xquad/es": 0.02}


@pytest.mark.parametrize(
    ("part", "most_straddling"),
    [*QUICK.items(), *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW.items())],
)
def test_targets_of_real_answers_have_the_answer_s_text(part, most_straddling):
    """But where a token straddles the border: `)).` is one token, and the answer ends within it."""
    file, folder = SHARED / "data" / f"{part}.parquet", SHARED / "modernbert-tokenizer"
    if not file.exists() or not folder.exists():
        pytest.skip("the shared data or tokenizer is not here")
    rows = pytest.importorskip("pyarrow.parquet").read_table(file).to_pylist()
    examples = [
        asked(
            row["context"],
            *zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True),
            question=row["question"],
        )
        for row in rows
    ]
    passages, windows = windows_of(examples, load_tokenizer(folder), max_length=384, stride=128)
    num_straddling = 0
    for example, passage, of_example in zip(examples, passages, windows, strict=True):
        tokens = passage.tokens_of(example)
        start, stop = passage.characters_of(*tokens)
        answer = example.answers[0][0].strip()
        assert any(np.any(window.target(tokens)) for window in of_example)
        assert answer in passage.text[start:stop]
        num_straddling += passage.text[start:stop] != answer
    assert num_straddling <= most_straddling * len(examples)
