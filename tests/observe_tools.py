"""Small models of every kind to observe with, and the rule for the errors of what they give."""

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from fastdream.ops import reference
from fastdream.ops.params import RSSM, Gaussian, Step

from .ops_tools import A, E, Maker, S, leaves, mapped

CORES = ("block", "layernorm", "gru", "gru_block_cell")
OPS = {"block": "block_gru", "layernorm": "layernorm_gru", "gru": "gru", "gru_block_cell": "gru"}
LATENTS = {"discrete": None, "softplus": Gaussian(S), "sigmoid2": Gaussian(S, 0.2, "sigmoid2")}
DTYPES = (torch.float32, torch.float64)


class Case:
    """A model and its inputs; `fn(*trees)` observes with them and replays drawn indices."""

    def __init__(
        self,
        core: str = "block",
        batch: int = 3,
        length: int = 4,
        dtype: torch.dtype = torch.float64,
        *,
        absolute: bool = False,
        later: int = 0,
        resets: float = 0.3,
        latent: str = "discrete",
    ) -> None:
        m, family = Maker(7, dtype), LATENTS[latent]
        self.lead, self.discrete = (batch, length), family is None
        rssm = m.rssm(core, family, absolute)._replace(prior=())
        width = None if self.discrete else S
        self.rssm: RSSM = rssm._replace(core=m.core(core, width, later)) if core == "block" else rssm
        self.state = m.state(batch, family)
        self.action, self.embed = m.normal(*self.lead, A, scale=2.0), m.normal(*self.lead, E)
        self.reset = m.uniform(*self.lead) < resets
        self.noise, self.index = m.uniform(*self.lead, S), m.index(*self.lead, S)
        if not self.discrete:
            self.noise = m.normal(*self.lead, S).detach()

    @property
    def trees(self) -> tuple:
        return self.rssm, *self.state, self.action, self.embed

    def replay(self, op: Callable[..., Step]) -> Callable[..., tuple[Tensor, ...]]:
        """What is certain: classes are replayed; normals are drawn, since any noise gives nearly the same."""
        draws = (None, self.index) if self.discrete else (self.noise, None)
        return lambda *trees: op(*trees, self.reset, *draws)[:3]

    def draw(self, op: Callable[..., Step]) -> Step:
        return op(*self.trees, self.reset, self.noise)


def results(fn: Callable[..., tuple[Tensor, ...]], trees: tuple) -> list[Tensor]:
    """Outputs, then the gradient of every leaf (zeros where there is none) of a random sum of all outputs."""
    outputs = fn(*trees)
    generator = torch.Generator().manual_seed(1)
    grads = [torch.randn(x.shape, generator=generator).to(x) for x in outputs]
    inputs = [x for x in leaves(trees) if x.requires_grad]
    gradients = torch.autograd.grad(outputs, inputs, grads, allow_unused=True)
    pairs = zip(inputs, gradients, strict=True)
    return [*(x.detach() for x in outputs), *(torch.zeros_like(x) if g is None else g for x, g in pairs)]


def assert_as_good(ours: Callable, theirs: Callable, trees: tuple, outputs: int, steps: int = 1) -> None:
    """Error against float64 at most twice (gradients: three times) that of the reference in the same dtype.

    In float64 the reference has no error to compare with. There the floor grows by an eps for each of the `steps`, as
    the bound on the rounding of a sum grows with its terms: gradients are sums over all of them.
    """
    wide = mapped(lambda x: x.detach().double().requires_grad_(x.requires_grad), trees)
    everything = zip(results(ours, trees), results(theirs, trees), results(theirs, wide), strict=True)
    for i, (our, their, true) in enumerate(everything):
        assert our.dtype == their.dtype and our.shape == their.shape, (i, our.shape, their.shape)
        if true.numel():
            terms = 32 + (steps if our.dtype == torch.float64 else 0)
            error, allowed = ((x.double() - true).abs().max().item() for x in (our, their))
            floor = terms * torch.finfo(our.dtype).eps * (1 + true.abs().max().item())
            assert error <= (2 if i < outputs else 3) * allowed + floor, (i, error, allowed)


def check(native: ModuleType, case: Case) -> None:
    assert_as_good(case.replay(native.observe), case.replay(reference.observe), case.trees, 3, case.lead[1])
