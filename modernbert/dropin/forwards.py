"""What stands in for `forward`: a padded batch → the stock model's output, computed at real tokens alone.

The backbone packs the rows (`Packing`), runs them through its `Twin` and lays the result out in the padded shape, zeros
at padding. Heads that work token by token get packed rows, too; of those that read padding, it is refused what they would
read. Price: one reading of the mask, for which a GPU is waited for, and one copy of the output.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from modernbert.batch import IGNORE, PackedBatch
from modernbert.dropin.twin import Twin, refusal

_WITHOUT_EFFECT = frozenset({"return_dict", "num_items_in_batch", "token_type_ids", "use_cache"})  # on a stock backbone
_FLATTENED = frozenset({"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """Where the real tokens of B rows of S positions are."""

    padded_shape: tuple[int, int]  # (B, S)
    lengths: list[int]  # of the rows that have tokens
    places_T: Tensor | None = None  # among B · S; None where nothing is padded

    @classmethod
    def of(cls, input_ids_BS: Tensor, mask_BS: Any) -> Packing:
        """Read the mask; padding may be on either side.

        Raises:
            UnsupportedError: a mask of another shape, with a hole in a row (whose places the stock model's window
                counts), or without a single token.
        """
        num_rows, length = input_ids_BS.shape
        lengths, places_T = [length] * num_rows, None
        if mask_BS is not None:
            if not isinstance(mask_BS, Tensor) or mask_BS.shape != input_ids_BS.shape:
                found = tuple(mask_BS.shape) if isinstance(mask_BS, Tensor) else type(mask_BS).__name__
                raise refusal(f"an attention_mask of {found} for input_ids of {(num_rows, length)}")
            mask_BS = mask_BS.to(input_ids_BS.device, torch.bool)
            runs_B = mask_BS[:, :1].sum(1) + (mask_BS[:, 1:] & ~mask_BS[:, :-1]).sum(1)
            lengths, runs = torch.stack([mask_BS.sum(1), runs_B]).tolist()
            if max(runs, default=0) > 1:
                raise refusal(
                    f"an attention_mask with holes: row {runs.index(max(runs))} has {max(runs)} runs of tokens"
                )
            if sum(lengths) < mask_BS.numel():
                places_T = mask_BS.flatten().nonzero().squeeze(1)
        lengths = [tokens for tokens in lengths if tokens]
        if not lengths:
            raise refusal(f"a batch of {(num_rows, length)} without a single token")
        return cls(padded_shape=(num_rows, length), lengths=lengths, places_T=places_T)

    def batch(self, input_ids_BS: Tensor, positions_BS: Tensor | None) -> PackedBatch:
        """Unless positions are given they are the stock model's: places in the row, padding counted."""
        if positions_BS is None:
            positions_BS = torch.arange(self.padded_shape[1], device=input_ids_BS.device)
        cu_seqlens = [0, *itertools.accumulate(self.lengths)]
        return PackedBatch(
            input_ids_T=self.packed(input_ids_BS),
            positions_T=self.packed(positions_BS.expand(self.padded_shape)),
            cu_seqlens=torch.tensor(cu_seqlens, dtype=torch.int32, device=input_ids_BS.device),
            max_seqlen=max(self.lengths),
        )

    def packed(self, x_BS: Tensor) -> Tensor:
        """(B, S) → (T)."""
        return x_BS.reshape(-1) if self.places_T is None else x_BS.reshape(-1)[self.places_T]

    def padded(self, x_TD: Tensor) -> Tensor:
        """(T, D) → (B, S, D), zeros at padding."""
        if self.places_T is not None:
            num_places = self.padded_shape[0] * self.padded_shape[1]
            x_TD = x_TD.new_zeros(num_places, x_TD.shape[1]).index_copy_(0, self.places_T, x_TD)
        return x_TD.view(*self.padded_shape, -1)


def is_accelerated(part: nn.Module) -> bool:
    """Whether something of here stands in for this object's forward."""
    return isinstance(vars(part).get("forward"), Forward)


class Forward:
    """The `forward` of one object. To others it looks like that of its class: trainers choose columns by its signature."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the class's forward."""
        if torch.jit.is_tracing() or torch.compiler.is_exporting():
            raise refusal("being traced or exported")
        if torch.compiler.is_compiling():  # nothing of this gains by it
            return torch.compiler.disable(type(self).run)(self, *args, **kwargs)
        return self.run(*args, **kwargs)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """What is done instead of `stock`."""
        raise NotImplementedError

    def stock(self, *args: Any, **kwargs: Any) -> Any:
        """What the class does."""
        return type(self.model).forward(self.model, *args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(type(self.model).forward.__get__(self.model))

    @property
    def __code__(self) -> Any:
        return type(self.model).forward.__code__


class _Backbone(Forward):
    """`ModernBertModel`."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.twin = Twin(model)

    def run(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        from transformers.modeling_outputs import BaseModelOutput

        if inputs_embeds is not None or input_ids is None or input_ids.dim() != 2:
            raise refusal("inputs_embeds, or input_ids that are not of (batch, length)")
        self._refuse(kwargs)
        if input_ids.device != self.model.embeddings.tok_embeddings.weight.device:  # a replica of nn.DataParallel, say
            raise refusal(f"input_ids on {input_ids.device} for weights elsewhere")
        self.twin.share()
        if isinstance(attention_mask, Packing):  # `_PerToken` wants its rows as they are
            hidden_BSD = self.twin(attention_mask.batch(input_ids, position_ids))[None]
        else:
            borders = kwargs.get("cu_seq_lens_q")
            if borders is None:
                packing = Packing.of(input_ids, attention_mask)
            else:  # flattened already
                packing = Packing(padded_shape=(1, input_ids.shape[1]), lengths=borders.diff().tolist())
            hidden_BSD = packing.padded(self.twin(packing.batch(input_ids, position_ids)))
        output = BaseModelOutput(last_hidden_state=hidden_BSD)
        return output.to_tuple() if kwargs.get("return_dict", self.model.config.return_dict) is False else output

    def _refuse(self, kwargs: dict[str, Any]) -> None:
        """Raise for arguments with which the stock encoder would answer differently."""
        config = self.model.config
        for name in ("output_attentions", "output_hidden_states", "is_causal"):
            if kwargs.get(name, getattr(config, name, None)):
                raise refusal(f"{name}=True")
        # Only flash attention reads the borders of flattened documents; any other kernel attends across them.
        known = _WITHOUT_EFFECT | _FLATTENED if "flash" in str(config._attn_implementation) else _WITHOUT_EFFECT
        for name, value in kwargs.items():
            if name not in known and value is not None and value is not False:
                raise refusal(f"the argument {name}")


class _PerToken(Forward):
    """Masked language modelling and token classification: the head, too, runs at real tokens only."""

    def run(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        model = self.model
        if attention_mask is None or input_ids is None or not is_accelerated(model.model):
            return self.stock(input_ids, attention_mask, position_ids, inputs_embeds, labels, **kwargs)
        packing = Packing.of(input_ids, attention_mask)
        labels_T = None if labels is None else self._packed(labels, packing)
        if self._is_watched():
            return self.stock(input_ids, attention_mask, position_ids, inputs_embeds, labels, **kwargs)
        in_dict = kwargs.pop("return_dict", None)
        # The class's own forward takes the packed rows for a batch of one: head, sparse prediction and loss are its own.
        output = self.stock(input_ids, packing, position_ids, inputs_embeds, labels_T, return_dict=True, **kwargs)
        if output.logits.dim() == 3:  # else sparse prediction: masked tokens alone, of all rows
            output.logits = packing.padded(output.logits[0])
        return output if (model.config.return_dict if in_dict is None else in_dict) else output.to_tuple()

    def _packed(self, labels_BS: Tensor, packing: Packing) -> Tensor:
        sparse = getattr(self.model, "sparse_prediction", False)
        ignored = self.model.sparse_pred_ignore_index if sparse else IGNORE
        labels_1T = packing.packed(labels_BS)[None]
        at_padding = int((labels_BS != ignored).sum() - (labels_1T != ignored).sum())
        if at_padding:
            raise refusal(f"labels at {at_padding} positions of padding (where none is meant, give {ignored})")
        return labels_1T

    def _is_watched(self) -> bool:
        """Whether somebody's hooks on the backbone or the head expect padded rows."""
        heads = (child.modules() for name, child in self.model.named_children() if name != "model")
        return any(m._forward_hooks or m._forward_pre_hooks for m in (self.model.model, *itertools.chain(*heads)))


class _ReadsPadding(Forward):
    """Sequence classification and question answering: stock heads, unless they would read what is not computed."""

    def run(self, *args: Any, **kwargs: Any) -> Any:
        given = self.__signature__.bind(*args, **kwargs).arguments
        mask_BS = given.get("attention_mask")
        if isinstance(mask_BS, Tensor) and mask_BS.dim() == 2 and is_accelerated(self.model.model):
            spans = given.get("start_positions") is not None and given.get("end_positions") is not None
            if spans and not mask_BS.all():
                raise refusal("a loss over the positions of padding, as question answering takes it,")
            first = "labels" in self.__signature__.parameters and self.model.config.classifier_pooling == "cls"
            if first and not mask_BS[:, 0].all():
                raise refusal("classifier_pooling='cls' of rows that begin with padding")
        return self.stock(*args, **kwargs)


FORWARDS: Mapping[str, type[Forward]] = {
    "ModernBertModel": _Backbone,
    "ModernBertForMaskedLM": _PerToken,
    "ModernBertForTokenClassification": _PerToken,
    "ModernBertForSequenceClassification": _ReadsPadding,
    "ModernBertForQuestionAnswering": _ReadsPadding,
}
