"""How a convolution that gives each pixel the 2x2 that it becomes reaches cuDNN.

Where these have few colours, neighbouring pixels of a line become channels of one place, of the image that is convolved
and of the one that this gives, alike: both stay as they are in memory. Of 4 pixels with 3 taps it takes 4 times the
multiplications, on tensor cores that otherwise wait for memory: RGB is 48 channels, of which a tile is full, and not
12, which fill no whole vectors of 16 bytes, so that cuDNN makes copies.
"""

from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 64  # channels of the least tile of cuDNN's kernels for Hopper


class Phases(NamedTuple):
    """The convolution, and what its pixels become."""

    batch: int
    height: int
    width: int
    inp: int
    out: int
    kernel: int
    fold: int  # pixels of a place

    @classmethod
    def of(cls, x: Tensor, weight: Tensor) -> Self:
        (batch, height, width, inp), (_, out, *_, kernel) = x.shape, weight.shape
        few = 16 * out <= TILE and kernel % 2 == 1 and x.element_size() == 2
        fold = next((n for n in (4, 2) if few and width % n == 0), 1)
        return cls(batch, height, width, inp, out, kernel, fold)

    @property
    def pixels(self) -> int:
        """Before spreading."""
        return self.batch * self.height * self.width

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the result."""
        return self.batch, 2 * self.height, 2 * self.width, self.out

    @property
    def filters_shape(self) -> tuple[int, int, int, int]:
        """Of what torch convolves with, channels last."""
        taps = 2 * self._before + 1 if self.fold > 1 else self.kernel
        return self.fold * 4 * self.out, self.kernel, taps, self.fold * self.inp

    def filters(self, weight: Tensor, x: Tensor) -> Tensor:
        """That, in x's dtype."""
        make = x.new_empty if self.fold == 1 else x.new_zeros
        filters = make(self.filters_shape)
        self._places(filters).copy_(weight)
        return filters

    def forward(self, x: Tensor, filters: Tensor) -> Tensor:
        """The convolution without bias: [B, H, W, 4 * out]."""
        y = torch.ops.aten.convolution(self._image(x), filters.permute(0, 3, 1, 2), None, *self._options)
        return y.permute(0, 2, 3, 1).contiguous().view(*x.shape[:3], 4 * self.out)

    def backward(
        self, x: Tensor, filters: Tensor, grad: Tensor, d_weight: Tensor, want_x: bool
    ) -> Tensor | None:
        """Gradient of x, where it is wanted, from that of what `forward` gives; that of weight into d_weight."""
        places = self.batch, self.height, self.width // self.fold
        grad = grad.view(*places, self.fold * 4 * self.out).permute(0, 3, 1, 2)
        wanted = [want_x, True, False]
        d_image, d_filters, _ = torch.ops.aten.convolution_backward(
            grad, self._image(x), filters.permute(0, 3, 1, 2), None, *self._options, wanted
        )
        outputs = self._places(d_filters.permute(0, 2, 3, 1).contiguous())
        if self.fold == 1:
            d_weight.copy_(outputs[0])
        else:
            torch.sum(outputs, 0, dtype=d_weight.dtype, out=d_weight)
        return self._cut(d_image.permute(0, 2, 3, 1)).contiguous().view(x.shape) if want_x else None

    @property
    def _before(self) -> int:
        """Places in reach before one."""
        return -(-((self.kernel - 1) // 2) // self.fold)

    @property
    def _around(self) -> tuple[int, ...]:
        """Zeros around an image that the convolution itself does not add, as it treats both ends alike."""
        return () if self.kernel % 2 else ((self.kernel - 1) // 2, self.kernel // 2) * 2

    @property
    def _options(self) -> tuple:
        """Stride, padding, dilation, whether transposed, its padding, groups."""
        padding = [0, 0] if self._around else [self.kernel // 2, self._before]
        return [1, 1], padding, [1, 1], False, [0, 0], 1

    def _image(self, x: Tensor) -> Tensor:
        """What torch convolves."""
        places = x.contiguous().view(*x.shape[:2], self.width // self.fold, self.fold * self.inp)
        return (F.pad(places, (0, 0, *self._around)) if self._around else places).permute(0, 3, 1, 2)

    def _cut(self, d_image: Tensor) -> Tensor:
        """The gradient of an image without its zeros around."""
        if not self._around:
            return d_image
        before, after = self._around[:2]
        return d_image[:, before:-after, before:-after]

    def _places(self, filters: Tensor) -> Tensor:
        """Where filters have the weight, for each output of a place: [fold, 4, out, in, k, k]."""
        _, rows, taps, channels = filters.shape
        line = taps * channels
        of_out = rows * line
        # The next output's kernel lies one pixel further.
        strides = 4 * self.out * of_out + self.inp, self.out * of_out, of_out, 1, line, self.inp
        sizes = self.fold, 4, self.out, self.inp, self.kernel, self.kernel
        first = self._before * self.fold - (self.kernel - 1) // 2
        return filters.as_strided(sizes, strides, filters.storage_offset() + first * self.inp)
