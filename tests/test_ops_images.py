"""conv_pool, spread_norm_act and image_loss: the reference by hand, the compiled ops against it."""

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor

from fastdream.ops import reference

from .ops_tools import Maker, gradcheck

NORMS = ("none", "rms", "layer")
ACTS = ("none", "silu", "gelu", "elu", "relu", "tanh")
DTYPES = (torch.float32, torch.float64)
# Images, height, width, in, out, kernel: what no vector divides, odd images, wide ones, none at all.
CONVS = [
    (1, 2, 2, 1, 1, 1),
    (2, 5, 7, 3, 5, 5),
    (3, 4, 6, 16, 17, 3),
    (2, 6, 4, 33, 6, 4),
    (3, 10, 8, 40, 24, 5),
    (2, 7, 9, 50, 3, 7),
    (0, 4, 4, 8, 8, 5),
]
# Images, height, width, channels after it.
SPREADS = [(1, 1, 1, 1), (2, 5, 7, 3), (3, 4, 2, 16), (2, 3, 4, 33), (3, 16, 10, 40), (0, 2, 2, 8)]


def conv_inputs(shape: tuple[int, ...], norm: str, dtype: torch.dtype = torch.float64) -> list[Tensor | None]:
    """x, weight, bias, scale and shift."""
    make, (batch, height, width, inp, out, kernel) = Maker(0, dtype), shape
    weight = make.normal(out, inp, kernel, kernel, scale=kernel**-1 * inp**-0.5)
    x, bias = make.normal(batch, height, width, inp), make.normal(out)
    return [
        x,
        weight,
        bias,
        None if norm == "none" else make.normal(out),
        make.normal(out) if norm == "layer" else None,
    ]


def spread_inputs(
    shape: tuple[int, ...], norm: str, dtype: torch.dtype = torch.float64
) -> list[Tensor | None]:
    """x, scale and shift."""
    make, n = Maker(0, dtype), shape[-1]
    x = make.normal(*shape[:-1], 4 * n, scale=3.0)
    return [x, None if norm == "none" else make.normal(n), make.normal(n) if norm == "layer" else None]


CASES = {"conv_pool": (conv_inputs, CONVS), "spread_norm_act": (spread_inputs, SPREADS)}
NAMES = tuple(CASES)


def results(op: Callable[..., Tensor], args: list[Tensor | None], *options: object) -> list[Tensor]:
    """Value and every gradient, in float64."""
    y = op(*args, *options)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    leaves = [x for x in args if x is not None]
    return [x.detach().double() for x in (y, *torch.autograd.grad(y, leaves, grad))]


def test_pooling_by_hand() -> None:
    x = torch.tensor([[1.0, 5, 9], [2, 3, 9], [9, 9, 9]]).reshape(1, 3, 3, 1)
    y = reference.conv_pool(
        x, torch.tensor(2.0).reshape(1, 1, 1, 1), torch.ones(1), None, None, "none", "none"
    )
    assert y.tolist() == [[[[11.0]]]]


def test_spreading_by_hand() -> None:
    x = torch.arange(16.0).reshape(1, 1, 2, 8)  # two pixels of 2x2 with two channels
    y = reference.spread_norm_act(x, None, None, "none", "none")
    assert y[0, 0].tolist() == [[0, 1], [2, 3], [8, 9], [10, 11]]
    assert y[0, 1].tolist() == [[4, 5], [6, 7], [12, 13], [14, 15]]


def test_loss_of_an_image_by_hand() -> None:
    x, target = torch.tensor([0.0, 40.0, -40.0]), torch.tensor([51, 255, 255]).to(torch.uint8)
    loss = reference.image_loss(x.reshape(1, 1, 3), target.reshape(1, 1, 3))
    assert float(loss) == pytest.approx(0.3**2 + 1, abs=1e-6)


def test_loss_of_what_is_no_stored_image_is_refused() -> None:
    """Floats from 0 to 1 would be taken for black."""
    with pytest.raises(ValueError, match=r"an image is torch.float32 \[4, 6, 3\], expected torch.uint8"):
        reference.image_loss(torch.zeros(4, 6, 3), torch.rand(4, 6, 3))


@pytest.mark.parametrize("name", NAMES)
def test_reference_gradients(name: str) -> None:
    def op(*args: Tensor) -> Tensor:
        return getattr(reference, name)(*args, "layer", "gelu", 1e-2)

    inputs, shape = CASES[name][0], (2, 2, 4, 3, 2, 3) if name == "conv_pool" else (2, 2, 3, 2)
    assert gradcheck(op, *inputs(shape, "layer"))


def assert_as_good(native: ModuleType, name: str, args: list[Tensor | None], *options: object) -> None:
    """Error against float64 at most twice (gradients: three times) that of the reference in the same dtype."""
    wide = [None if x is None else x.detach().double().requires_grad_() for x in args]
    truth = results(getattr(reference, name), wide, *options)
    theirs = results(getattr(reference, name), args, *options)
    ours = results(getattr(native, name), args, *options)
    dtype = args[0].dtype
    floor = (8 if dtype == torch.float32 else 64) * torch.finfo(dtype).eps
    for i, (our, their, true) in enumerate(zip(ours, theirs, truth, strict=True)):
        assert our.shape == true.shape
        if our.numel():
            error, allowed = (float((x - true).abs().max()) for x in (our, their))
            allowed = (3 if i else 2) * allowed + floor * (1 + float(true.abs().max()))
            assert error <= allowed, (args[0].shape, i, error, allowed)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", NAMES)
def test_native_errs_at_most_twice_as_much_as_the_reference(
    native: ModuleType, poison: list[str], name: str, norm: str, act: str, dtype: torch.dtype
) -> None:
    inputs, shapes = CASES[name]
    for shape in shapes:
        assert_as_good(native, name, inputs(shape, norm, dtype), norm, act)
    assert "new_empty" in poison


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_every_instruction_set(
    native: ModuleType, isa: str, poison: list[str], name: str, dtype: torch.dtype
) -> None:
    inputs, shapes = CASES[name]
    for shape in shapes:
        assert_as_good(native, name, inputs(shape, "rms", dtype))


def test_many_images_sum_as_well_as_the_reference(native: ModuleType) -> None:
    assert_as_good(native, "conv_pool", conv_inputs((40, 32, 32, 8, 12, 5), "rms", torch.float32))


@pytest.mark.parametrize("chunk", [1, 3000, 10**9])  # one image at a time, several, all
def test_chunks_change_nothing(native: ModuleType, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    args = conv_inputs((7, 6, 8, 3, 4, 5), "rms")
    monkeypatch.setattr(native.images, "CHUNK", chunk)
    theirs = results(reference.conv_pool, args)
    for our, their in zip(results(native.conv_pool, args), theirs, strict=True):
        torch.testing.assert_close(our, their)


def test_first_of_equal_maxima_gets_the_gradient(native: ModuleType, isa: str) -> None:
    """As in black corners of an image: it decides where the gradient goes."""
    x = torch.tensor([0.0, 1, 1, 1, 2, 2, 0, 2]).reshape(1, 2, 4, 1).repeat(1, 1, 1, 20)
    x[..., 5] = torch.nan
    found = []
    for ops in (reference, native):
        leaf = x.clone().requires_grad_()
        weight = torch.eye(20).reshape(20, 20, 1, 1)  # NaN spreads to every channel of its pixels
        y = ops.conv_pool(leaf.nan_to_num(7.0) + 0, weight, torch.zeros(20), None, None, "none", "none")
        y.backward(torch.ones_like(y))
        found.append((y.detach(), leaf.grad))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)
    spoilt = native.conv_pool(x, weight, torch.zeros(20), None, None, "none", "none")
    assert bool(spoilt.isnan().all())


def test_images_need_no_gradient(native: ModuleType) -> None:
    x, *params = conv_inputs((2, 4, 4, 3, 2, 3), "rms")
    x = x.detach()
    grads = torch.autograd.grad(native.conv_pool(x, *params).sum(), params[:3])
    truth = torch.autograd.grad(reference.conv_pool(x, *params).sum(), params[:3])
    for grad, true in zip(grads, truth, strict=True):
        torch.testing.assert_close(grad, true)


@pytest.mark.parametrize("name", NAMES)
def test_native_takes_any_strides(native: ModuleType, name: str) -> None:
    inputs, shapes = CASES[name]
    args = inputs(shapes[1], "layer")
    strided = [x.detach().transpose(0, -1).contiguous().transpose(0, -1).requires_grad_() for x in args]
    theirs = results(getattr(reference, name), args, "layer")
    for our, their in zip(results(getattr(native, name), strided, "layer"), theirs, strict=True):
        torch.testing.assert_close(our, their)


@pytest.mark.parametrize("name", NAMES)
def test_native_is_the_same_in_two_threads(
    native: ModuleType, request: pytest.FixtureRequest, name: str
) -> None:
    inputs, shape = CASES[name][0], (5, 24, 24, 12, 12, 5) if name == "conv_pool" else (5, 32, 32, 12)
    args = inputs(shape, "rms")
    one = results(getattr(native, name), args)
    request.getfixturevalue("two_threads")
    two = [results(getattr(native, name), args) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*two, strict=True))
    for a, b in zip(one, two[0], strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_native_is_an_op_for_torch(native: ModuleType, name: str) -> None:
    inputs, shapes = CASES[name]
    args = [x.detach().float() for x in inputs(shapes[1], "layer")]
    options = 2, 1, 1e-3  # layer, silu
    forward, backward = (getattr(torch.ops.fastdream, f"{name}{part}") for part in ("", "_backward"))
    checks = torch.library.opcheck(forward.default, (*(x.requires_grad_() for x in args), *options))
    args = [x.detach() for x in args]
    if name == "conv_pool":
        y, top, place = forward(*args, *options)
        call = (*args, *options, top, place, y, True)
    else:
        call = (*args, *options, forward(*args, *options))
    checks |= torch.library.opcheck(backward.default, call)
    assert set(checks.values()) == {"SUCCESS"}


@pytest.mark.parametrize("name", NAMES)
def test_native_second_gradient_is_refused(native: ModuleType, name: str) -> None:
    inputs, shapes = CASES[name]
    args = inputs(shapes[1], "rms")
    (first,) = torch.autograd.grad(getattr(native, name)(*args).sum(), args[0], create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once.*reference"):
        first.sum().backward()


@pytest.mark.parametrize("dtype", DTYPES)
def test_conv_pool_takes_images_as_they_are_stored(native: ModuleType, dtype: torch.dtype) -> None:
    stored = torch.randint(256, (2, 4, 6, 8, 3), dtype=torch.uint8)[:, 1:]
    _, *params = conv_inputs((1, 6, 8, 3, 5, 5), "rms", dtype)
    scaled = (stored.reshape(6, 6, 8, 3).to(dtype) / 255 - 0.5).requires_grad_()
    for ops in (reference, native):
        expected, y = ops.conv_pool(scaled, *params), ops.conv_pool(stored, *params, dtype=dtype)
        assert y.shape == (6, 3, 4, 5) and torch.equal(y, expected)
        grads = (torch.autograd.grad(out.square().sum(), params[:2]) for out in (y, expected))
        assert all(torch.equal(our, their) for our, their in zip(*grads, strict=True))


@pytest.mark.parametrize(
    ("index", "shape", "message"),
    [
        (0, (4, 4, 3), r"x has shape \[4, 4, 3\], expected \[B, H, W, in\]"),
        (1, (2, 3), r"weight has shape \[2, 3\], expected \[out, in, k, k\]"),
        (1, (2, 4, 3, 3), r"weight has shape \[2, 4, 3, 3\], expected \[2, 3, 3, 3\]"),
        (2, (3,), r"bias has shape \[3\], expected \[2\]"),
        (3, (3,), r"scale has shape \[3\], expected \[2\]"),
    ],
)
def test_conv_pool_names_bad_input(
    native: ModuleType, index: int, shape: tuple[int, ...], message: str
) -> None:
    args = conv_inputs((2, 4, 4, 3, 2, 3), "rms")
    args[index] = torch.zeros(shape, dtype=torch.float64)
    with pytest.raises(ValueError, match=f"conv_pool: {message}"):
        native.conv_pool(*args)


@pytest.mark.parametrize(
    ("index", "shape", "message"),
    [
        (0, (4, 4, 3), r"x has shape \[4, 4, 3\], expected \[B, H, W, in\]"),
        (1, (8, 3, 3, 3), r"weight has shape \[8, 3, 3, 3\], expected \[4, out, in, k, k\]"),
        (1, (3, 2, 3, 3, 3), r"weight has shape \[3, 2, 3, 3, 3\], expected \[4, 2, 3, 3, 3\]"),
        (2, (8,), r"bias has shape \[8\], expected \[2\]"),
    ],
)
def test_conv_spread_names_bad_input(
    native: ModuleType, index: int, shape: tuple[int, ...], message: str
) -> None:
    args = [torch.zeros(2, 4, 4, 3), torch.zeros(4, 2, 3, 3, 3), torch.zeros(2), None, None]
    args[index] = torch.zeros(shape)
    with pytest.raises(ValueError, match=f"conv_spread: {message}"):
        native.conv_spread(*args)


def test_spread_norm_act_names_bad_input(native: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"x has shape \[1, 4, 4, 6\], expected \[B, H, W, 4 \* N\]"):
        native.spread_norm_act(torch.zeros(1, 4, 4, 6), None, None)
    with pytest.raises(ValueError, match=r"shift has shape \[8\], expected \[2\]"):
        native.spread_norm_act(torch.zeros(1, 4, 4, 8), None, torch.zeros(8))
    with pytest.raises(ValueError, match="x is torch.bfloat16"):
        native.spread_norm_act(torch.zeros(1, 4, 4, 8).bfloat16(), None, None)
    with pytest.raises(ValueError, match="unknown norm 'batch'"):
        native.spread_norm_act(torch.zeros(1, 4, 4, 8), None, None, "batch")


def test_images_that_are_not_as_they_are_stored_are_refused(native: ModuleType) -> None:
    """Floats from 0 to 1 would be taken for black."""
    _, *params = conv_inputs((1, 6, 8, 3, 5, 5), "rms", torch.float32)
    for ops in (reference, native):
        with pytest.raises(
            ValueError, match=r"an image is torch.float32 \[1, 6, 8, 3\], expected torch.uint8"
        ):
            ops.conv_pool(torch.rand(1, 6, 8, 3), *params, dtype=torch.float32)
