"""BERT-style classes: padded rows in, `.loss`, `.logits` and `.hidden_states` out, packed in between. Without transformers.

    tokenizer(texts, padding=True, return_tensors="pt") → pack → encoder → head at real tokens → loss → laid out as padded

Names, arguments, losses and state dicts are those of transformers' `ModernBertFor…`, so code written for BERT runs with its
import line changed, a plain loop or transformers' `Trainer` alike. At padding, hidden states and logits are 0 and the logits
of answers' starts and ends −10,000: there is nothing to be read. `task()` gives the same weights to the rest of the package.

Price: one reading of the mask, for which a GPU is waited for, and a copy of what is laid out; padding costs nothing else.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from modernbert.batch import IGNORE, PackedBatch
from modernbert.dropin.bert_output import ModelOutput, problem_of, sequence_loss, span_loss, token_loss
from modernbert.dropin.bert_pretrained import Pretrained
from modernbert.dropin.forwards import Packing
from modernbert.errors import DataError, UnsupportedError
from modernbert.model.encoder import Encoder
from modernbert.tasks.classify import pooled

_NOWHERE = -10_000.0  # where no answer begins or ends; e to it is 0, and two of them are still finite


@dataclass(frozen=True, slots=True)
class _Rows:
    """A padded batch as it was packed, with what is to be learnt from it."""

    packing: Packing
    batch: PackedBatch
    targets: Any
    num_items: Tensor | int | None


class _Padded(Pretrained):
    """What the classes share: rows are packed, run through the encoder, and answered by a head of its own (`_answer`)."""

    def _run(
        self, input_ids: Tensor | None, attention_mask: Tensor | None, position_ids: Tensor | None, targets: Any,
        *, inputs_embeds: Any = None, token_type_ids: Tensor | None = None, output_attentions: bool | None = None,
        output_hidden_states: bool | None = None, return_dict: bool | None = None,
        num_items: Tensor | int | None = None,
    ) -> Any:  # fmt: skip
        if input_ids is None or inputs_embeds is not None:
            raise UnsupportedError("inputs_embeds: the encoder packs token ids; give input_ids")
        if input_ids.dim() != 2:
            raise DataError(f"input_ids of {tuple(input_ids.shape)}; give (batch, length), as return_tensors='pt' does")
        if output_attentions:
            raise UnsupportedError("output_attentions=True: attention's weights are never formed; leave it out")
        if token_type_ids is not None and bool(token_type_ids.any()):
            raise UnsupportedError("token_type_ids other than 0: ModernBERT has no token types; leave them out")
        packing = _packing(input_ids, attention_mask)
        batch = packing.batch(input_ids, position_ids)
        keep = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        if keep:
            with _kept(self.model) as states:
                hidden_TD = self.model.hidden_states(batch)  # all documents at once, or the parts would be kept
            states[-1] = hidden_TD
        else:
            hidden_TD, states = self.model(batch), []
        found = self._answer(hidden_TD, _Rows(packing, batch, targets, num_items))
        if keep:
            found["hidden_states"] = tuple(packing.padded(state_TD) for state_TD in states)
        output = ModelOutput(found)
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def _answer(self, hidden_TD: Tensor, rows: _Rows) -> dict[str, Any]:
        raise NotImplementedError

    def _classified(self, hidden_MD: Tensor) -> Tensor:
        """Head and classifier: (M, D) → (M, C)."""
        return self.classifier(self.drop(self.head(hidden_MD, self.model.path_for(hidden_MD))))


class ModernBERTModel(_Padded):
    """The encoder alone."""

    architecture: ClassVar[str] = "ModernBertModel"

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None, token_type_ids: Tensor | None = None,
        output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None,
    ) -> Any:  # fmt: skip
        """Padded rows → `last_hidden_state` (B, S, D), 0 at padding.

        Args:
            input_ids: (B, S).
            attention_mask: (B, S), 0 at padding, which is on one side of each row or on both; without it nothing is padding.
            position_ids: (B, S) or (1, S); places in the row where not given.
            inputs_embeds: refused.
            token_type_ids: accepted where all are 0, for code that always passes them.
            output_attentions: refused.
            output_hidden_states: also give `hidden_states`: the embeddings', each layer's but the last, and the result's,
                each (B, S, D).
            return_dict: False gives a plain tuple.

        Raises:
            UnsupportedError: what is refused, a mask with gaps, or a batch without a single token.
        """
        return self._run(
            input_ids, attention_mask, position_ids, None, inputs_embeds=inputs_embeds, token_type_ids=token_type_ids,
            output_attentions=output_attentions, output_hidden_states=output_hidden_states, return_dict=return_dict,
        )  # fmt: skip

    def _answer(self, hidden_TD: Tensor, rows: _Rows) -> dict[str, Any]:
        return {"last_hidden_state": rows.packing.padded(hidden_TD)}


class _Labelled(_Padded):
    """The classes that take `labels`."""

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None, labels: Tensor | None = None, token_type_ids: Tensor | None = None,
        output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:  # fmt: skip
        """Padded rows → `logits`, and with `labels` the `loss`.

        Args:
            input_ids: (B, S), and so on: as `ModernBERTModel.forward`.
            attention_mask: likewise.
            position_ids: likewise.
            inputs_embeds: refused.
            labels: (B, S), −100 where there is none, for masked LM and token classification, whose logits are (B, S, ·);
                (B), or a row for each text, for sequence classification, whose logits are (B, C).
            token_type_ids: accepted where all are 0.
            output_attentions: refused.
            output_hidden_states: also give `hidden_states`.
            return_dict: False gives a plain tuple.
            num_items_in_batch: what the sum of the tokens' losses is divided by, in place of their number.

        Raises:
            UnsupportedError: what is refused, a mask with gaps, or a batch without a single token.
            DataError: labels at padding or of the wrong kind, or a text without a token to be classified.
        """
        return self._run(
            input_ids, attention_mask, position_ids, labels, inputs_embeds=inputs_embeds, token_type_ids=token_type_ids,
            output_attentions=output_attentions, output_hidden_states=output_hidden_states, return_dict=return_dict,
            num_items=num_items_in_batch,
        )  # fmt: skip


class ModernBERTForMaskedLM(_Labelled):
    """Masked language modelling: `logits` (B, S, V)."""

    architecture: ClassVar[str] = "ModernBertForMaskedLM"
    accepts_loss_kwargs: ClassVar[bool] = True  # transformers' Trainer says how many labels all batches of a step have

    def _answer(self, hidden_TD: Tensor, rows: _Rows) -> dict[str, Any]:
        labels_T = None if rows.targets is None else _packed_labels(rows.targets, rows.packing)
        sparse = self.config.sparse_prediction and labels_T is not None
        if labels_T is not None and sparse:  # logits of the labelled tokens alone, (M, V)
            at_M = (labels_T != IGNORE).nonzero().squeeze(1)
            hidden_TD, labels_T = hidden_TD[at_M], labels_T[at_M]
        path = self.model.path_for(hidden_TD)
        logits_TV = self.decoder(self.head(hidden_TD, path), self.model.embeddings.tok_embeddings.weight, path)
        loss = None if labels_T is None else token_loss(logits_TV, labels_T, rows.num_items)
        return {"loss": loss, "logits": logits_TV if sparse else rows.packing.padded(logits_TV)}


class ModernBERTForTokenClassification(_Labelled):
    """A label for each token: `logits` (B, S, C)."""

    architecture: ClassVar[str] = "ModernBertForTokenClassification"
    accepts_loss_kwargs: ClassVar[bool] = True

    def _answer(self, hidden_TD: Tensor, rows: _Rows) -> dict[str, Any]:
        logits_TC = self._classified(hidden_TD)
        loss = (
            None
            if rows.targets is None
            else token_loss(logits_TC, _packed_labels(rows.targets, rows.packing), rows.num_items)
        )
        return {"loss": loss, "logits": rows.packing.padded(logits_TC)}


class ModernBERTForSequenceClassification(_Labelled):
    """A class, several of them, or a number for each text: `logits` (B, C).

    With `classifier_pooling="cls"` a row's first real token is read, wherever its padding is.
    """

    architecture: ClassVar[str] = "ModernBertForSequenceClassification"

    def _answer(self, hidden_TD: Tensor, rows: _Rows) -> dict[str, Any]:
        if rows.num_items is not None:
            raise UnsupportedError("num_items_in_batch: a loss of texts is their mean; leave it out")
        num_rows = rows.packing.padded_shape[0]
        if rows.batch.num_documents < num_rows:
            empty = num_rows - rows.batch.num_documents
            raise DataError(
                f"{empty} of {num_rows} rows are padding alone and have nothing to be classified; drop them"
            )
        logits_BC = self._classified(pooled(hidden_TD, rows.batch, self.config.classifier_pooling))
        if rows.targets is None:
            return {"logits": logits_BC}
        self.config.problem_type = problem_of(self.config.problem_type, self.num_labels, rows.targets)
        return {"loss": sequence_loss(logits_BC, rows.targets, self.config.problem_type), "logits": logits_BC}


class ModernBERTForQuestionAnswering(_Padded):
    """Where in a row the answer starts and ends: `start_logits` and `end_logits` (B, S).

    Start and end are chosen among real tokens alone. transformers' loss of padded rows also counts padding as places.
    """

    architecture: ClassVar[str] = "ModernBertForQuestionAnswering"

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None,
        start_positions: Tensor | None = None, end_positions: Tensor | None = None,
        inputs_embeds: Tensor | None = None, token_type_ids: Tensor | None = None,
        output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None,
    ) -> Any:  # fmt: skip
        """Padded rows → `start_logits`, `end_logits`, and with positions the `loss`.

        Args:
            input_ids: (B, S), and so on: as `ModernBERTModel.forward`.
            attention_mask: likewise.
            position_ids: likewise.
            start_positions: (B), the answer's first token; beyond the row there is no loss of it.
            end_positions: (B), its last token.
            inputs_embeds: refused.
            token_type_ids: accepted where all are 0.
            output_attentions: refused.
            output_hidden_states: also give `hidden_states`.
            return_dict: False gives a plain tuple.

        Raises:
            UnsupportedError: what is refused, a mask with gaps, or a batch without a single token.
            DataError: an answer that starts or ends at padding.
        """
        spans = None if start_positions is None or end_positions is None else (start_positions, end_positions)
        return self._run(
            input_ids, attention_mask, position_ids, spans, inputs_embeds=inputs_embeds, token_type_ids=token_type_ids,
            output_attentions=output_attentions, output_hidden_states=output_hidden_states, return_dict=return_dict,
        )  # fmt: skip

    def _answer(self, hidden_TD: Tensor, rows: _Rows) -> dict[str, Any]:
        logits_T2 = self._classified(hidden_TD)
        logits_BS2 = rows.packing.padded(logits_T2).masked_fill(~_is_real(rows.packing, logits_T2)[..., None], _NOWHERE)
        both = [x_BS1.squeeze(2).contiguous() for x_BS1 in logits_BS2.split(1, dim=2)]
        loss = None
        if rows.targets is not None:
            _check_inside(rows.targets, rows.packing)
            loss = span_loss(both, rows.targets)
        return {"loss": loss, "start_logits": both[0], "end_logits": both[1]}


def _packing(input_ids_BS: Tensor, mask_BS: Tensor | None) -> Packing:
    try:
        return Packing.of(input_ids_BS, mask_BS)
    except UnsupportedError as error:  # its remedy is of a model of transformers
        fault = str(error).rpartition(": ")[0]
        raise UnsupportedError(
            f"{fault}; give (batch, length) of 0 and 1, rows without gaps, not all of them 0"
        ) from error


@contextlib.contextmanager
def _kept(encoder: Encoder) -> Iterator[list[Tensor]]:
    """What the embeddings and each layer give (T, D), while this lasts."""
    states: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        states.append(output)

    handles = [part.register_forward_hook(keep) for part in (encoder.embeddings, *encoder.layers)]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def _is_real(packing: Packing, like: Tensor) -> Tensor:
    """(B, S): True at tokens, False at padding."""
    if packing.places_T is None:
        return torch.ones(packing.padded_shape, dtype=torch.bool, device=like.device)
    num_rows, length = packing.padded_shape
    real = torch.zeros(num_rows * length, dtype=torch.bool, device=like.device)
    return real.index_fill_(0, packing.places_T, True).view(num_rows, length)


def _packed_labels(labels_BS: Tensor, packing: Packing) -> Tensor:
    if labels_BS.shape != packing.padded_shape:
        raise DataError(f"labels of {tuple(labels_BS.shape)} for input_ids of {packing.padded_shape}; give one a token")
    labels_T = packing.packed(labels_BS if packing.places_T is None else labels_BS.to(packing.places_T.device))
    at_padding = (
        int((labels_BS != IGNORE).sum()) - int((labels_T != IGNORE).sum()) if packing.places_T is not None else 0
    )
    if at_padding:
        raise DataError(f"{at_padding} labels at padding, where nothing is computed; give {IGNORE} there")
    return labels_T


def _check_inside(spans: tuple[Tensor, Tensor], packing: Packing) -> None:
    """Refuse answers at padding: no logit of theirs says anything."""
    if packing.places_T is None:
        return
    length = packing.padded_shape[1]
    real_BS = nn.functional.pad(_is_real(packing, packing.places_T), (0, 1), value=True)  # beyond the row: no loss
    for name, at_B in zip(("start_positions", "end_positions"), spans, strict=True):
        places_B1 = at_B.to(real_BS.device).reshape(-1, 1).clamp(0, length)
        inside_B = real_BS.gather(1, places_B1).squeeze(1)
        if not bool(inside_B.all()):
            row = int((~inside_B).nonzero()[0])
            raise DataError(
                f"{name}[{row}]={int(places_B1[row])} is padding; give a token of the row, or {length} for none"
            )
