"""Gaussian latents and truncated normal actions: standard deviations, reparameterised samples, KL."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdream.ops.params import Clamp, StdForm
from fastdream.ops.reference.categorical import apply_free
from fastdream.ops.reference.layers import match, upcast


def gaussian_std(raw: Tensor, min_std: float = 0.1, form: StdForm = "softplus") -> Tensor:
    """Standard deviation of a raw output [...] -> [...] in float32 at least.

    softplus(raw) + min_std (DreamerV1), or sigmoid2: 2 * sigmoid(raw / 2) + min_std (DreamerV2).
    """
    raw = upcast(raw)
    if form == "softplus":
        return F.softplus(raw) + min_std
    if form == "sigmoid2":
        return 2 * torch.sigmoid(raw / 2) + min_std
    raise ValueError(f"unknown form {form!r} of the standard deviation; choose softplus or sigmoid2")


def gaussian_sample(mean: Tensor, std: Tensor, noise: Tensor) -> Tensor:
    """mean + std * noise, all [...], noise standard normal. Gradients reach mean and std."""
    return mean + std * noise


def trunc_normal_sample(mean: Tensor, std: Tensor, noise: Tensor, clip: float = 1e-6) -> Tensor:
    """A normal cut off outside [-1, 1], by its inverse CDF; the value then stays `clip` inside.

    mean in [-1, 1], std, noise [...] uniform in [0, 1). Gradients reach mean and std as those of a normal that is not
    cut off, 1 and (sample - mean) / std: TensorFlow's, with which the published agents learned. The quantile's own
    are smaller towards the ends, where a mean moves the sample less and less.
    Source: DreamerV2 `TruncNormalDist`; the gradient of TensorFlow's StatelessParameterizedTruncatedNormal.
    """
    with torch.no_grad():
        low, high = (torch.special.ndtr((bound - mean) / std) for bound in (-1, 1))
        info = torch.finfo(mean.dtype)
        prob = (low + match(noise, mean.dtype) * (high - low)).clamp(info.tiny, 1 - info.eps / 2)
        sample = (mean + std * torch.special.ndtri(prob)).clamp(clip - 1, 1 - clip)
        normal = (sample - mean) / std
    path = mean + std * normal
    return sample + (path - path.detach())


def _kl(post: tuple[Tensor, Tensor], prior: tuple[Tensor, Tensor]) -> Tensor:
    (mean, std), (prior_mean, prior_std) = post, prior
    ratio, shift = std / prior_std, (mean - prior_mean) / prior_std
    return (0.5 * (ratio.square() + shift.square() - 1) - ratio.log()).sum(-1)


def gaussian_kl(
    post: tuple[Tensor, Tensor], prior: tuple[Tensor, Tensor], free: float = 3.0, clamp: Clamp = "mean"
) -> tuple[Tensor, Tensor]:
    """The two KL losses of a Gaussian latent, in nats, summed over its S dimensions.

    post, prior: (mean [..., S], std [..., S]). dyn = KL(sg(post) || prior), rep = KL(post || sg(prior)),
    clamped as in `categorical_kl`. Returns (dyn, rep) in float32 at least.
    Source: DreamerV1, free nats 3 on the batch mean.
    """
    post, prior = (upcast(post[0]), upcast(post[1])), (upcast(prior[0]), upcast(prior[1]))
    dyn = _kl((post[0].detach(), post[1].detach()), prior)
    rep = _kl(post, (prior[0].detach(), prior[1].detach()))
    return apply_free(dyn, rep, free, clamp)
