"""Categorical latents and actions: unimix, sampling from given noise, straight-through gradients, KL."""

import torch
from torch import Tensor

from fastdream.ops.params import Clamp
from fastdream.ops.reference.layers import match, upcast


def _mixed_probs(logit: Tensor, unimix: float, dim: int = -1) -> Tensor:
    """(1 - unimix) * softmax + unimix / C in float32 at least."""
    probs = torch.softmax(upcast(logit), dim)
    return probs * (1 - unimix) + unimix / logit.shape[dim] if unimix else probs


def unimix_log_probs(logit: Tensor, unimix: float, dim: int = -1) -> Tensor:
    """log((1 - unimix) * softmax(logit) + unimix / C), C classes along dim, logit -> its shape in float32 at least."""
    return _mixed_probs(logit, unimix, dim).log() if unimix else torch.log_softmax(upcast(logit), dim)


def inverse_cdf(probs: Tensor, noise: Tensor) -> Tensor:
    """Number of classes whose cumulative probability is at most the noise.

    Classes at which the sum has already reached its end are not counted, so that noise above a sum that
    rounding left below 1 draws the last class of non-zero probability.
    """
    cdf = probs.cumsum(-1)
    return ((cdf <= noise[..., None]) & (cdf < cdf[..., -1:])).sum(-1)


def _straight_through(index: Tensor, soft: Tensor, dtype: torch.dtype) -> Tensor:
    """onehot + soft - sg(soft): the exact one-hot of index, with the gradient of `soft`."""
    onehot = torch.zeros_like(soft).scatter(-1, index[..., None], 1.0)
    if torch.is_grad_enabled() and soft.requires_grad:
        onehot = onehot + (soft - soft.detach())
    return match(onehot, dtype)


def categorical_sample(
    logit: Tensor, noise: Tensor | None, unimix: float = 0.0, index: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Draw one class by the inverse CDF of the unimixed probabilities, with a straight-through gradient.

    logit [..., C]; noise [...] uniform in [0, 1), one number a draw; index [...] int64 replays an earlier
    draw (noise is then ignored and may be None). Returns (onehot [..., C] in logit.dtype, index [...] int64).
    The value is onehot + probs - sg(probs) on the mixed probabilities. A class of zero probability is
    never drawn. Raises ValueError when noise and index are both None.
    Source: DreamerV2 (straight-through), DreamerV3 `outs.OneHot` (unimix 0.01).
    """
    probs = _mixed_probs(logit, unimix)
    if index is None:
        if noise is None:
            raise ValueError("categorical_sample needs noise to draw with, or the index of an earlier draw")
        index = inverse_cdf(probs.detach(), noise)
    index = match(index, torch.int64)
    return _straight_through(index, probs, logit.dtype), index


def score_sample(
    logit: Tensor, noise: Tensor | None, unimix: float = 0.0, index: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As `categorical_sample`, with the gradient of onehot * p / sg(p), p the probability of the class drawn.

    So a loss that is linear in the one-hot has, in expectation over draws, its exact gradient.
    Source: DreamerV1 in TensorFlow 1, after Foerster et al. 2018 (DiCE).
    """
    onehot, index = categorical_sample(logit.detach(), noise, unimix, index)
    log_prob = categorical_log_prob(logit, index, unimix)
    if torch.is_grad_enabled() and log_prob.requires_grad:
        onehot = onehot * match(torch.exp(log_prob - log_prob.detach()), logit.dtype)[..., None]
    return onehot, index


def gumbel_sample(
    logit: Tensor, noise: Tensor, unimix: float = 0.0, index: Tensor | None = None, tau: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Hard Gumbel-softmax: argmax(log probs + g), with the gradient of softmax((log probs + g) / tau).

    logit [..., C]; noise [..., C] uniform in [0, 1), g = -log(-log(noise)); tau temperature > 0; index
    [...] int64 replays an earlier draw, whose gradient still needs its noise. Returns (onehot [..., C]
    in logit.dtype, index [...] int64), as `categorical_sample`.
    Source: Jang et al. 2017; the form that other Dreamer codebases use.
    """
    log_probs = unimix_log_probs(logit, unimix)
    uniform = match(noise, log_probs.dtype).clamp_min(torch.finfo(log_probs.dtype).tiny)
    perturbed = log_probs - (-uniform.log()).log()
    if index is None:
        index = perturbed.detach().argmax(-1)
    index = match(index, torch.int64)
    return _straight_through(index, torch.softmax(perturbed / tau, -1), logit.dtype), index


def categorical_entropy(logit: Tensor, unimix: float = 0.0, dim: int = -1) -> Tensor:
    """Entropy in nats of the mixed distribution, logit [..., C] -> [...], or with C at dim, in float32 at least."""
    log_probs = unimix_log_probs(logit, unimix, dim)
    return -(log_probs.exp() * log_probs).sum(dim)


def latent_entropy(logit: Tensor, unimix: float = 0.0) -> Tensor:
    """Entropy in nats of a categorical latent, logit [..., S, C] -> [...], in float32 at least; without gradient."""
    # Classes first: over a short last axis, PyTorch's softmax takes six times as long on a CPU.
    return categorical_entropy(logit.detach().movedim(-1, 0).contiguous(), unimix, 0).sum(-1)


def categorical_log_prob(logit: Tensor, index: Tensor, unimix: float = 0.0) -> Tensor:
    """Log probability of class index [...] under the mixed logit [..., C] -> [...] in float32 at least."""
    return unimix_log_probs(logit, unimix).gather(-1, index[..., None]).squeeze(-1)


def apply_free(dyn: Tensor, rep: Tensor, free: float, clamp: Clamp) -> tuple[Tensor, Tensor]:
    """Free nats on a pair of KLs [...]: of each element, of each mean over all elements, or none."""
    if clamp == "step":
        return dyn.clamp_min(free), rep.clamp_min(free)
    if clamp == "mean":
        return dyn.mean().clamp_min(free), rep.mean().clamp_min(free)
    if clamp == "none":
        return dyn, rep
    raise ValueError(f"unknown clamp {clamp!r}; choose step, mean or none")


def categorical_kl(
    post: Tensor, prior: Tensor, unimix: float = 0.0, free: float = 1.0, clamp: Clamp = "step"
) -> tuple[Tensor, Tensor]:
    """The two KL losses of a categorical latent, in nats, summed over its S variables.

    post, prior [..., S, C] logits before unimix. dyn = KL(sg(post) || prior) trains the prior and rep =
    KL(post || sg(prior)) the posterior. clamp "step": max(., free) of every element, [...] (DreamerV3);
    "mean": max(mean over all elements, free), scalars (DreamerV1 and V2); "none": [...], free unused.
    Returns (dyn, rep) in float32 at least. Raises ValueError for an unknown clamp.
    Source: DreamerV2 (balancing), DreamerV3 `rssm.loss`.
    """
    log_post, log_prior = unimix_log_probs(post, unimix), unimix_log_probs(prior, unimix)
    probs = log_post.exp()
    dyn = (probs.detach() * (log_post.detach() - log_prior)).sum((-2, -1))
    rep = (probs * (log_post - log_prior.detach())).sum((-2, -1))
    return apply_free(dyn, rep, free, clamp)
