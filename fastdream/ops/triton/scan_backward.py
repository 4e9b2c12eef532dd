"""The backward scan of a posterior, which carries the gradients of deter and stoch alone.

A step, from the last to the first: `logit_gradient` or `normal_gradient`, `layer_gradient` of the posterior's hidden
layer, and three kernels of the core (DreamerV1's and V2's: two); every hidden layer more is a kernel more. Gradients of
parameters are products over all steps at once, after it: `scan_gradients`.
"""

from torch import Tensor

from fastdream.ops.params import Categorical
from fastdream.ops.triton.core_backward import core_backward, gradient_tiles
from fastdream.ops.triton.layer_gradient import layer_gradient
from fastdream.ops.triton.logit_gradient import logit_gradient
from fastdream.ops.triton.normal_gradient import normal_gradient
from fastdream.ops.triton.rowwise_gradient import Later, empty_dots
from fastdream.ops.triton.scan_model import Model, Sizes, Weights
from fastdream.ops.triton.scan_saved import Grads, Outputs, Saved, at, empty_grads, later_tile


def backward_scan(
    model: Model,
    sizes: Sizes,
    weights: Weights,
    deter: Tensor,
    reset: Tensor,
    outputs: Outputs,
    saved: Saved,
    noise: Tensor | None,
    d_deter: Tensor | None,
    d_stoch: Tensor | None,
    d_logit: Tensor | None,
) -> Grads:
    """Gradients of layers from those of the outputs, contiguous or None. noise: that normals were drawn with."""
    grads = empty_grads(model, sizes, outputs, saved)
    core = core_backward(model, sizes, weights, reset, saved, grads)
    post = PosteriorBackward(model, sizes, weights, reset, saved, grads)
    for t in reversed(range(reset.shape[1])):
        logit, b_logit = outputs.logit[:, t].flatten(1), grads.logit[:, t]
        given = _at(d_stoch, t), _at(d_logit, t)
        layer, latent = model.stoch, model.latent
        if isinstance(latent, Categorical):
            logit_gradient(logit, *given, b_logit, weights.of_stoch, latent, layer, core.stoch)
        else:
            assert noise is not None
            drawn = logit, noise[:, t], *given
            normal_gradient(*drawn, b_logit, weights.stoch, latent, layer, core.stoch)
        first = post.step(t)
        before = outputs.deter[:, t - 1] if t else deter
        core.step(t, before, None if d_deter is None else d_deter[:, t], first)
    return grads


def _at(grad: Tensor | None, t: int) -> Tensor | None:
    """The gradient [B, S*C] of one step."""
    return None if grad is None else grad[:, t].flatten(1)


class PosteriorBackward:
    """The posterior's hidden layers with the memory of their gradients bound."""

    def __init__(
        self, model: Model, sizes: Sizes, weights: Weights, reset: Tensor, saved: Saved, grads: Grads
    ) -> None:
        self.model, self.sizes, self.weights = model, sizes, weights
        self.reset, self.saved, self.grads = reset, saved, grads
        rows, like = len(reset), weights.stacked
        widths = [layer.weight.shape[0] for layer in model.post[:-1]]
        self.cuts = [gradient_tiles(rows, n, n, like.itemsize) for n in widths]
        self.tiles = [sizes.tile, *(later_tile(n, rows, like.itemsize) for n in widths[1:])]
        self.dots = [
            empty_dots(like, rows, -(-n // cut.n), layer.norm)
            for n, cut, layer in zip(widths, self.cuts, model.post, strict=False)
        ]

    def step(self, t: int) -> Later:
        """Back from the logits of step t through all hidden layers but the first, which is returned."""
        later, gradient = None, self.grads.logit[:, t]
        saved, last = self.saved, len(self.cuts) - 1
        for i in reversed(range(last + 1)):
            pre = saved.later[i - 1][:, t] if i else saved.stacked[:, t + 1, : self.sizes.hidden]
            sums = at(saved.later_sums[i - 1] if i else saved.post_sums, t)
            b_post = self.grads.post[i][:, t]
            layer_gradient(
                gradient,
                self.weights.post[i + 1][None],
                pre,
                sums,
                self.model.post[i],
                b_post,
                self.dots[i],
                self.tiles[i],
                self.cuts[i],
                later,
                self.model.post[i + 1] if later else None,
                self.tiles[i + 1] if later else 1,
            )
            later = Later(b_post, pre, sums, self.dots[i], self.reset[:, t])
            gradient = b_post
        assert later is not None
        return later
