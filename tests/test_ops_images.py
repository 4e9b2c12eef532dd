"""pool_norm_act and spread_norm_act: the reference by hand, the compiled ops against it."""

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor

from fastdream.ops import reference

from .ops_tools import Maker, gradcheck

NAMES = ("pool_norm_act", "spread_norm_act")
NORMS = ("none", "rms", "layer")
ACTS = ("none", "silu", "gelu", "elu", "relu", "tanh")
# Sizes that no vector divides, odd images, more than one thread's work, none at all.
SHAPES = [
    (1, 2, 2, 1),
    (2, 5, 7, 3),
    (3, 4, 2, 16),
    (2, 6, 4, 33),
    (3, 32, 20, 40),
    (0, 4, 4, 8),
]


def inputs(name: str, shape: tuple[int, ...], norm: str, dtype: torch.dtype) -> list[Tensor | None]:
    """x [*shape] with four times the channels where they are spread, scale and shift."""
    make, n = Maker(0, dtype), shape[-1]
    x = make.normal(*shape[:-1], n if name.startswith("pool") else 4 * n, scale=3.0)
    return [x, None if norm == "none" else make.normal(n), make.normal(n) if norm == "layer" else None]


def results(op: Callable[..., Tensor], args: list[Tensor | None], *options: object) -> list[Tensor]:
    """Value and every gradient, in float64."""
    y = op(*args, *options)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    leaves = [x for x in args if x is not None]
    return [x.detach().double() for x in (y, *torch.autograd.grad(y, leaves, grad))]


def test_pooling_by_hand() -> None:
    x = torch.tensor([[1.0, 5, 9], [2, 3, 9], [9, 9, 9]]).reshape(1, 3, 3, 1)
    assert reference.pool_norm_act(x, None, None, "none", "none").tolist() == [[[[5.0]]]]


def test_spreading_by_hand() -> None:
    x = torch.arange(16.0).reshape(1, 1, 2, 8)  # two pixels of 2x2 with two channels
    y = reference.spread_norm_act(x, None, None, "none", "none")
    assert y[0, 0].tolist() == [[0, 1], [2, 3], [8, 9], [10, 11]]
    assert y[0, 1].tolist() == [[4, 5], [6, 7], [12, 13], [14, 15]]


@pytest.mark.parametrize("name", NAMES)
def test_reference_gradients(name: str) -> None:
    def op(*args: Tensor) -> Tensor:
        return getattr(reference, name)(*args, "layer", "gelu", 1e-2)

    assert gradcheck(op, *inputs(name, (2, 2, 4, 3), "layer", torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", NAMES)
def test_native_errs_at_most_twice_as_much_as_the_reference(
    native: ModuleType, isa: str, poison: list[str], name: str, norm: str, act: str, dtype: torch.dtype
) -> None:
    for shape in SHAPES:
        args = inputs(name, shape, norm, dtype)
        wide = [None if x is None else x.detach().double().requires_grad_() for x in args]
        truth = results(getattr(reference, name), wide, norm, act)
        theirs = results(getattr(reference, name), args, norm, act)
        ours = results(getattr(native, name), args, norm, act)
        floor = (8 if dtype == torch.float32 else 64) * torch.finfo(dtype).eps
        for i, (our, their, true) in enumerate(zip(ours, theirs, truth, strict=True)):
            assert our.shape == true.shape
            if our.numel():
                error, allowed = (float((x - true).abs().max()) for x in (our, their))
                allowed = (3 if i else 2) * allowed + floor * (1 + float(true.abs().max()))
                assert error <= allowed, (shape, i, error, allowed)
    assert "new_empty" in poison


def test_first_of_equal_maxima_gets_the_gradient(native: ModuleType, isa: str) -> None:
    """As in black corners of an image: it decides where the gradient goes."""
    x = torch.tensor([0.0, 1, 1, 1, 2, 2, 0, 2]).reshape(1, 2, 4, 1).repeat(1, 1, 1, 20)
    x[..., 5] = torch.nan
    found = []
    for ops in (reference, native):
        leaf = x.clone().requires_grad_()
        y = ops.pool_norm_act(leaf, None, None, "none", "none")
        y.backward(torch.ones_like(y))
        found.append((y.detach(), leaf.grad))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", NAMES)
def test_native_takes_any_strides(native: ModuleType, name: str) -> None:
    x, scale, shift = inputs(name, (2, 4, 6, 5), "layer", torch.float64)
    strided = [x.detach().transpose(1, 2).contiguous().transpose(1, 2), scale.detach().expand(5), shift]
    strided = [x.detach().requires_grad_() for x in strided]
    ours = results(getattr(native, name), strided, "layer")
    for our, their in zip(ours, results(getattr(reference, name), [x, scale, shift], "layer"), strict=True):
        torch.testing.assert_close(our, their)


@pytest.mark.parametrize("name", NAMES)
def test_native_is_the_same_in_two_threads(
    native: ModuleType, request: pytest.FixtureRequest, name: str
) -> None:
    args = inputs(name, (5, 64, 64, 12), "rms", torch.float64)
    one = results(getattr(native, name), args)
    request.getfixturevalue("two_threads")
    two = [results(getattr(native, name), args) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*two, strict=True))
    for a, b in zip(one, two[0], strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_native_is_an_op_for_torch(native: ModuleType, name: str) -> None:
    args = [x.detach().float() for x in inputs(name, (2, 3, 4, 5), "layer", torch.float64)]
    options = 2, 1, 1e-3  # layer, silu
    forward, backward = (getattr(torch.ops.fastdream, f"{name}{part}") for part in ("", "_backward"))
    checks = torch.library.opcheck(forward.default, (*(x.requires_grad_() for x in args), *options))
    x, *affine = (x.detach() for x in args)
    if name.startswith("pool"):
        y, top, place = forward(x, *affine, *options)
        call = (top, *affine, *options, place, y, list(x.shape))
    else:
        call = (x, *affine, *options, forward(x, *affine, *options))
    checks |= torch.library.opcheck(backward.default, call)
    assert set(checks.values()) == {"SUCCESS"}


@pytest.mark.parametrize("name", NAMES)
def test_native_second_gradient_is_refused(native: ModuleType, name: str) -> None:
    x, scale, _ = inputs(name, (1, 2, 2, 3), "rms", torch.float64)
    (first,) = torch.autograd.grad(getattr(native, name)(x, scale, None).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once.*reference"):
        first.sum().backward()


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("pool_norm_act", (4, 4, 3), r"x has shape \[4, 4, 3\], expected \[B, H, W, N\]"),
        ("spread_norm_act", (1, 4, 4, 6), r"x has shape \[1, 4, 4, 6\], expected \[B, H, W, 4 \* N\]"),
        ("pool_norm_act", (1, 4, 4, 6), r"scale has shape \[3\], expected \[6\]"),
    ],
)
def test_native_names_bad_input(native: ModuleType, name: str, shape: tuple[int, ...], message: str) -> None:
    op = getattr(native, name)
    with pytest.raises(ValueError, match=f"{name}: {message}"):
        op(torch.zeros(shape), torch.ones(3), None)
    with pytest.raises(ValueError, match="x is torch.bfloat16"):
        op(torch.zeros(shape).bfloat16(), None, None)
    with pytest.raises(ValueError, match="unknown norm 'batch'"):
        op(torch.zeros(shape), None, None, "batch")
