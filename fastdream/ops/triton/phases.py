"""How a convolution that gives each pixel the 2x2 that it becomes reaches cuDNN.

Its outputs are filled up with channels of zeros to whole vectors of 16 bytes, as cuDNN otherwise does by copies: RGB in
half precision takes 16 channels for 12.
"""

from typing import NamedTuple, Self

import torch.nn.functional as F
from torch import Tensor

from fastdream.ops.triton.folding import VECTOR


class Phases(NamedTuple):
    """The convolution, and what its pixels become."""

    batch: int
    height: int
    width: int
    out: int
    channels: int  # that the convolution gives
    padding: tuple[int, int]  # zeros before and after each axis of the image

    @classmethod
    def of(cls, x: Tensor, weight: Tensor) -> Self:
        (batch, height, width, _), (_, out, *_, kernel) = x.shape, weight.shape
        vector, padding = VECTOR // x.element_size(), ((kernel - 1) // 2, kernel // 2)
        return cls(batch, height, width, out, -(-4 * out // vector) * vector, padding)

    @property
    def pixels(self) -> int:
        """Before spreading."""
        return self.batch * self.height * self.width

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the result."""
        return self.batch, 2 * self.height, 2 * self.width, self.out

    @property
    def options(self) -> tuple:
        """Stride, padding, dilation, whether transposed, its padding, groups."""
        before, after = self.padding
        padding = before if before == after else 0
        return [1, 1], [padding, padding], [1, 1], False, [0, 0], 1

    def image(self, x: Tensor) -> Tensor:
        """What torch convolves, [B, in, H, W], with those zeros that it does not add as it treats both ends alike."""
        before, after = self.padding
        x = x if before == after else F.pad(x, (0, 0, *self.padding, *self.padding))
        return x.contiguous().permute(0, 3, 1, 2)

    def cut(self, d_image: Tensor) -> Tensor:
        """The gradient of x from that of `image`."""
        d_image, (before, after) = d_image.permute(0, 2, 3, 1), self.padding
        d_x = d_image if before == after else d_image[:, before:-after, before:-after]
        return d_x.contiguous()

    def filters(self, weight: Tensor, x: Tensor) -> Tensor:
        """weight in x's dtype, [channels, k, k, in], the last of them zeros."""
        (_, out, inp, *kernel), used = weight.shape, 4 * self.out
        make = x.new_empty if used == self.channels else x.new_zeros
        filters = make(self.channels, *kernel, inp)
        filters[:used].unflatten(0, (4, out)).copy_(weight.permute(0, 1, 3, 4, 2))
        return filters
