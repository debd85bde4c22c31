"""How far probabilities lie apart."""

import torch


def divergence(wanted: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Divergence ``(batch,)`` in nats of the softmax of ``logits (batch, classes)`` from that of ``wanted``."""
    # Half precision is too coarse for the difference of two logarithms.
    kind = torch.promote_types(wanted.dtype, torch.float32)
    log_p, log_q = wanted.to(kind).log_softmax(dim=1), logits.to(kind).log_softmax(dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)
