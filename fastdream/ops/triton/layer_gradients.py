"""What gradients after a backward scan are made of: layers' own, from those of what follows their norms."""

from typing import NamedTuple

import torch
from torch import Tensor

from fastdream.ops.params import Layer
from fastdream.ops.triton import layers as _registered  # noqa: F401
from fastdream.ops.triton.scan_model import Model, Sizes, Weights
from fastdream.ops.triton.scan_saved import Grads, Outputs, Saved


class Pieces(NamedTuple):
    """All that both scans leave behind."""

    model: Model
    sizes: Sizes
    weights: Weights
    reset: Tensor  # [B, T]
    outputs: Outputs
    saved: Saved
    grads: Grads
    learns: bool  # whether parameters do

    def through_norm(self, layer: Layer, x: Tensor, d_y: Tensor, act: str = "none") -> Layer:
        """Gradients of a layer as a Layer, of pre-activations x [N, W] in the place of its weight.

        d_y is that of act(norm(x)): without the activation for what the scan has taken through it already. Without
        those of bias, scale and shift where parameters do not learn.
        """
        learns = self.learns
        if layer.norm == act == "none":
            return Layer(d_y, bias_gradient(layer, d_y) if learns else None)
        scale, shift = (None, None) if layer.norm == "none" else (layer.scale, layer.shift)
        wanted = [learns and scale is not None, learns and shift is not None]
        d_x, *vectors = torch.ops.fastdream.triton_norm_act_backward(
            x, scale, shift, layer.norm, act, layer.eps, d_y, wanted
        )
        if not learns:
            return Layer(d_x)
        d_scale = vectors.pop(0) if scale is not None else None
        return Layer(d_x, bias_gradient(layer, d_x), d_scale, vectors[0] if vectors else None)


def activated(layer: Layer, x: Tensor) -> Tensor:
    """act(norm(x)) of pre-activations x [N, W]."""
    scale, shift = (None, None) if layer.norm == "none" else (layer.scale, layer.shift)
    return torch.ops.fastdream.triton_norm_act(x, scale, shift, layer.norm, layer.act, layer.eps)


def bias_gradient(layer: Layer, gradient: Tensor) -> Tensor | None:
    """Of the layer's bias, from that of its pre-activations [N, W]."""
    return None if layer.bias is None else gradient.sum(0, dtype=torch.float32)


def flat(x: Tensor) -> Tensor:
    """[B, T, N] -> [B*T, N]."""
    return x.reshape(-1, x.shape[-1])


def by_block(x: Tensor, blocks: int) -> Tensor:
    """[N, W] -> [g, N, W / g]."""
    return x.unflatten(-1, (blocks, -1)).transpose(0, 1)


def first_rows(x: Tensor, reset: Tensor) -> Tensor:
    """The rows [B, N] of the first step, zero where reset, of x [B*T, N]."""
    return x.unflatten(0, reset.shape)[:, 0].masked_fill(reset[:, :1], 0.0)
