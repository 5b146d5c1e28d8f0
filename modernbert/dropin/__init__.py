"""A live ModernBERT of transformers or sentence-transformers → the same object, its encoder run without padding.

    accelerate(model)   # forward and backward compute the real tokens only
    restore(model)      # the stock model again

Steps: an `Encoder` takes the model's weights for its own (`twin.py`); a callable that packs batches takes the place of
`forward` (`forwards.py`) on that one object, neither on its class nor among its modules; a trial batch must give the
stock model's answer. What the stock model computes and this does not is refused, never approximated.

Price: the stock model and its twin once each over at most 3 × 300 tokens, 4 s for ModernBERT-base on one core.
"""

from __future__ import annotations

import sys
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from modernbert.dropin.forwards import FORWARDS, Forward, is_accelerated
from modernbert.errors import UnsupportedError
from modernbert.runtime import evaluating

__all__ = ["accelerate", "restore"]

Model = TypeVar("Model", bound=nn.Module)

_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 1e-2}  # see `_distance`
_LOOSEST = 5e-2  # bfloat16, and float32 whose products are rounded


def accelerate(model: Model) -> Model:
    """Let `model` run its encoder without padding, in place: the same outputs at every position that is not padding.

    Args:
        model: a ModernBERT of transformers (bare, or for masked language modelling, sequence or token classification, or
            question answering), or a `SentenceTransformer` or `CrossEncoder` on one. If it is accelerated, nothing is done.

    Raises:
        UnsupportedError: what is not computed here, or outputs that differed on the trial batch; `model` is as it was.
    """
    parts = [part for part in _parts(model) if not is_accelerated(part)]
    for part in parts:
        if "forward" in vars(part) or part._compiled_call_impl is not None:
            raise UnsupportedError(
                f"the forward of this {type(part).__name__} is compiled or replaced; accelerate before that"
            )
    if parts:
        _install(model, {part: FORWARDS[type(part).__name__](part) for part in parts})
    return model


def restore(model: Model) -> Model:
    """Undo `accelerate`; a model that is not accelerated is left alone.

    Raises:
        UnsupportedError: another library has wrapped the forward since.
    """
    parts = _parts(model)
    for part in parts:
        forward = vars(part).get("forward")
        while hasattr(forward, "__wrapped__"):
            forward = forward.__wrapped__
            if isinstance(forward, Forward):
                raise UnsupportedError(f"the forward of this {type(part).__name__} was wrapped since; undo that first")
    for part in filter(is_accelerated, parts):
        del part.forward
    return model


def _parts(model: nn.Module) -> list[Any]:
    """The backbone and, where there is one, the transformers model around it."""
    found: Any = model
    sentences = sys.modules.get("sentence_transformers")  # an object of a library exists only where that is imported
    if sentences is not None and isinstance(model, (sentences.SentenceTransformer, sentences.CrossEncoder)):
        first = model[0] if isinstance(model, nn.Sequential) else model.model  # a CrossEncoder before 6.0 has no parts
        found = getattr(first, "auto_model", first)
    modeling, kind = sys.modules.get("transformers.models.modernbert.modeling_modernbert"), type(found)
    if modeling is not None and kind.__name__ in FORWARDS and kind is getattr(modeling, kind.__name__):
        parts = [found] if kind is modeling.ModernBertModel else [found.model, found]
        if type(parts[0]) is modeling.ModernBertModel:
            return parts
    raise UnsupportedError(
        f"a {kind.__module__}.{kind.__qualname__} cannot be accelerated, only transformers' {', '.join(FORWARDS)}, "
        "and a SentenceTransformer or CrossEncoder on one of these"
    )


def _install(model: nn.Module, forwards: dict[Any, Forward]) -> None:
    """Put the forwards in place if they answer as the stock model does.

    Raises:
        UnsupportedError: they do not; nothing is in place.
    """
    backbone = _parts(model)[0]
    # Beyond the window, and long enough for what takes long documents another way (from 256 tokens on).
    longest = min(max(260, 3 * backbone.config.local_attention // 2), 300, backbone.config.max_position_embeddings)
    trials = [(backbone, (longest, 1, min(17, longest))), (model, (min(17, longest), 1))]
    tolerance = _tolerance(backbone)
    device_type = next(model.parameters()).device.type
    with evaluating(model), torch.no_grad(), torch.autocast(device_type, enabled=False):
        expected = [_answers(part, backbone, lengths) for part, lengths in trials]
        try:
            for part, forward in forwards.items():
                part.forward = forward
            for (part, lengths), stock in zip(trials, expected, strict=True):
                distance = _distance(_answers(part, backbone, lengths), stock)
                if not distance <= tolerance:  # nan, too
                    raise UnsupportedError(
                        f"on a trial batch this {type(part).__name__} is {distance:.1e} away from the stock model, more "
                        f"than {tolerance:.0e}; it stays the stock model"
                    )
        except BaseException:
            for part in forwards:
                vars(part).pop("forward", None)
            raise


def _answers(part: nn.Module, backbone: Any, lengths: tuple[int, ...]) -> list[Tensor]:
    """Every tensor of floats that a model makes of one padded batch of random tokens, padding left out."""
    weight = backbone.embeddings.tok_embeddings.weight
    ids_BS = torch.randint(len(weight), (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(0))
    mask_BS = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).to(weight.device)
    inputs = {"input_ids": ids_BS.to(weight.device), "attention_mask": mask_BS.long()}
    output = part(inputs) if isinstance(part, nn.Sequential) else part(**inputs, return_dict=True)
    tensors = [x for x in output.values() if isinstance(x, Tensor) and x.is_floating_point()]
    rows = [zip(x, mask_BS, strict=True) if x.shape[:2] == mask_BS.shape else ((x, ...),) for x in tensors]
    return [x[mask] for pairs in rows for x, mask in pairs]


def _distance(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """The largest distance by norm, over the norm; a tenth of one is added to it, lest a logit near 0 count for much."""
    pairs = zip(ours, theirs, strict=True)
    return max(float((a - b).float().norm() / (b.float().norm() + 0.1 * b.numel() ** 0.5)) for a, b in pairs)


def _tolerance(backbone: nn.Module) -> float:
    kernels = torch.backends.cuda if next(backbone.parameters()).is_cuda else torch.backends.mkldnn
    if kernels.matmul.fp32_precision in ("tf32", "bf16"):
        return _LOOSEST
    return max(_TOLERANCE.get(parameter.dtype, _LOOSEST) for parameter in backbone.parameters())
