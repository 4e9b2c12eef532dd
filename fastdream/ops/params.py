"""Parameters as ops receive them: plain tuples of tensors and of the few static choices that belong to them.

Modules own the parameters and hand out these tuples (`Dense.layer`, `RSSM.params`, ...); ops own the
mathematics. A kernel reads the static fields once, when it is built, and the tensors at every call.

Sizes: B batch, D deter, S latent variables, C classes of each, H hidden, A action width, E embed.
"""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, TypeVar, cast

from torch import Tensor

T = TypeVar("T")

Norm = Literal["none", "rms", "layer"]
Act = Literal["none", "silu", "gelu", "elu", "relu", "tanh"]
Clamp = Literal["step", "mean", "none"]  # of free nats: every element, the mean over the batch, or nowhere
StdForm = Literal["softplus", "sigmoid2"]
Kind = Literal["mean", "std", "min", "max", "size", "large"]  # of number that `summarize` gives of a tensor
ActionKind = Literal["categorical", "score", "bounded_normal", "trunc_normal", "tanh_normal"]


def need_steps(op: str, steps: int) -> None:
    """Raise ValueError for a recursion over time without a step, which has no result."""
    if steps < 1:
        raise ValueError(f"{op}: there are {steps} time steps, expected 1 or more")


class Layer(NamedTuple):
    """Linear map, then norm over the whole last axis, then activation."""

    weight: Tensor  # [out, in], or for a block-diagonal map [blocks, in / blocks, out / blocks]
    bias: Tensor | None = None  # [out]
    scale: Tensor | None = None  # [out], of the norm
    shift: Tensor | None = None  # [out], of the layer norm
    norm: Norm = "none"
    act: Act = "none"
    eps: float = 1e-4


Layers = tuple[Layer, ...]


class Feat(NamedTuple):
    """Input of the networks on a latent state: what takes it means its concatenation [deter, stoch]."""

    deter: Tensor  # [..., D]
    stoch: Tensor  # [..., S*C] flat one-hots, or [..., S]

    def detach(self) -> "Feat":
        """The same numbers without gradient."""
        return Feat(self.deter.detach(), self.stoch.detach())


class BlockGRU(NamedTuple):
    """DreamerV3's core (Hafner et al. 2025): blocks that meet only in the hidden layer's norm."""

    deter: Layer  # D -> H
    stoch: Layer  # S*C -> H
    action: Layer  # A -> H
    hidden: Layers  # block layers; the first takes [deter of the block, 3H] per block, all give D
    gates: Layer  # block layer D -> 3D, per block reset | cand | update


class LayerNormGRU(NamedTuple):
    """DreamerV2's core: one product of [input, deter], LayerNorm over all 3D gates, update bias -1."""

    inputs: Layer  # S*C + A -> H
    gates: Layer  # [H, D] -> 3D, reset | cand | update


class GRU(NamedTuple):
    """DreamerV1's core: the plain GRU, in PyTorch's gate order reset | update | cand.

    reset_after=True multiplies the reset gate to the recurrent product (Keras, cuDNN, torch.nn.GRUCell);
    False multiplies it to the state before the product (TensorFlow's GRUBlockCell, PlaNet).
    """

    inputs: Layer  # S + A -> H
    weight_ih: Tensor  # [3D, H]
    weight_hh: Tensor  # [3D, D]
    bias_ih: Tensor  # [3D]
    bias_hh: Tensor  # [3D]
    reset_after: bool = True


Core = BlockGRU | LayerNormGRU | GRU


class Categorical(NamedTuple):
    """S categorical variables of C classes; probabilities are mixed with `unimix` of the uniform."""

    stoch: int
    classes: int
    unimix: float = 0.0


class Gaussian(NamedTuple):
    """S independent normals. std = softplus(x) + min_std (V1) or 2 * sigmoid(x / 2) + min_std (V2)."""

    stoch: int
    min_std: float = 0.1
    std: StdForm = "softplus"


Latent = Categorical | Gaussian


class RSSM(NamedTuple):
    """A recurrent state-space model."""

    core: Core
    latent: Latent
    prior: Layers  # deter -> logit; the last layer is linear
    post: Layers  # [deter, embed] -> logit; the last layer is linear
    absolute: bool = False  # the posterior sees embed alone


class ActionHead(NamedTuple):
    """Distribution of one action key on the actor's last hidden layer.

    categorical: one `out` layer, elements * classes logits, mixed with `unimix` of the uniform.
    score: the same, but what is drawn has the gradient of its log probability, not of all probabilities (DreamerV1).
    The others have two, mean and std:
    bounded_normal: mean = tanh(.), std = (max_std - min_std) * sigmoid(. + 2) + min_std (DreamerV3).
    trunc_normal: the same mean, std = 2 * sigmoid(. / 2) + min_std; actions in [-1, 1] alone (DreamerV2).
    tanh_normal: mean = 5 * tanh(. / 5), std = softplus(. + softplus^-1(init_std)) + min_std; the action is the tanh
    of a sample (DreamerV1).
    """

    kind: ActionKind
    elements: int  # number of scalars of the key
    classes: int  # of each, 0 if continuous
    out: Layers
    unimix: float = 0.0
    min_std: float = 0.1
    max_std: float = 1.0
    init_std: float = 5.0


class Actor(NamedTuple):
    """A policy on the features of a state."""

    layers: Layers  # feat = [deter, flat stoch] -> units
    heads: tuple[ActionHead, ...]  # in the sorted order of the action keys
    detach: bool = (
        False  # features enter without gradient, so that a dream's actions have none through its states
    )


class Step(NamedTuple):
    """What the world model yields at one time step, or with a time axis after B at T of them."""

    deter: Tensor  # [B, D]
    stoch: Tensor  # [B, S, C] straight-through one-hots, or [B, S] Gaussian samples
    logit: Tensor  # [B, S, C] before unimix, or [B, 2S] Gaussian mean | raw std
    index: Tensor | None  # type: ignore[assignment]  # [B, S] int64 class drawn, None for Gaussian


class Dream(NamedTuple):
    """Imagined trajectories of N starts. State 0 is the start; action t leads from state t to t + 1."""

    deter: Tensor  # [N, H + 1, D]
    stoch: Tensor  # [N, H + 1, S, C] or [N, H + 1, S]
    logit: Tensor  # [N, H, S, C] or [N, H, 2S], the prior of states 1 ... H
    action: Tensor  # [N, H + 1, A] float32; the last one only fills the shape


class MDNRNN(NamedTuple):
    """The memory of World Models: an LSTM, and a mixture of `mixtures` normals for each of Z latent dimensions.

    Gates in the order in | cand | forget | out; 1 is added to the forget gate besides its bias.
    """

    weight_ih: Tensor  # [4D, Z + A], or [4D, Z + A + 1] with the restart flag last
    weight_hh: Tensor  # [4D, D]
    bias: Tensor  # [4D]
    out: Layer  # D -> 3 * Z * mixtures, or 1 more for the logit of the episode's end, which then comes first
    mixtures: int = 5
    restart: bool = False  # whether the restart flag is an input


class MDNStep(NamedTuple):
    """What the memory yields at one step of a dream."""

    hidden: Tensor  # [N, D]
    cell: Tensor  # [N, D]
    latent: Tensor  # [N, Z]
    ends: Tensor  # [N] logit of the episode's end


class Control(NamedTuple):
    """World Models' controllers, one a row: a linear map of [latent, hidden] or [latent, cell, hidden], then tanh."""

    weight: Tensor  # [N, F, A]; F is Z + D, or Z + 2D where the cell is seen
    bias: Tensor | None  # [N, A]


class MDNDream(NamedTuple):
    """T steps of dreams, whose actions controllers chose."""

    hidden: Tensor  # [N, D] after the last step
    cell: Tensor  # [N, D]
    latent: Tensor  # [N, T, Z] that the steps led to
    ends: Tensor  # [N, T] logits of the episode's end


def tensors(tree: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, in order."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, tuple):
        for item in tree:
            yield from tensors(item)


def any_gradient(*trees: Any) -> bool:
    """Whether any of their tensors wants one."""
    return any(x.requires_grad for x in tensors(trees))


def frozen(tree: T) -> T:
    """Parameters without gradient, so that one flows through them to their inputs alone."""
    result: Any = tree
    if isinstance(tree, Tensor):
        result = tree.detach()
    elif isinstance(tree, tuple):
        items = [frozen(item) for item in tree]
        result = type(tree)(*items) if hasattr(tree, "_fields") else tuple(items)
    return cast(T, result)
