"""The compiled norm_act and mlp against the reference: values and every gradient at any size."""

from types import ModuleType

import pytest
import torch

from fastdream.ops import reference
from fastdream.ops.params import Feat, Layer, Layers

from .native_tools import assert_as_good_as_reference, results, same
from .ops_tools import Maker, chain, leaves, mapped

NORMS = ("none", "rms", "layer")
ACTS = ("none", "silu", "gelu", "elu", "relu", "tanh")
DTYPES = (torch.float32, torch.float64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("norm", NORMS)
def test_norm_act_agrees(
    native: ModuleType, isa: str, poison: list[str], norm: str, act: str, dtype: torch.dtype
):
    make = Maker(0, dtype)
    for shape in ((1,), (3,), (2, 7, 16), (5, 33), (70, 70), (0, 4)):
        affine = [make.normal(shape[-1]) for _ in range(2)] if norm != "none" else (None, None)
        x = make.normal(*shape, scale=3.0)
        for scale, shift in (affine, (None, None)):
            args = x, scale, shift, norm, act, 1e-3
            assert_as_good_as_reference(native.norm_act, reference.norm_act, args)
    assert "empty_like" in poison


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("act", ACTS)
def test_mlp_agrees(native: ModuleType, isa: str, poison: list[str], norm: str, act: str, dtype: torch.dtype):
    for linear in (True, False):
        make = Maker(1, dtype)
        layers = chain(make, 5, 33, 7, norm=norm, act=act, linear=linear)
        for rows in (1, 17, 300):
            assert_as_good_as_reference(native.mlp, reference.mlp, (make.normal(rows, 5), layers))
    assert "new_empty" in poison


@pytest.mark.parametrize("rows", [1, 3, 8, 64, 65, 257, 700])
@pytest.mark.parametrize("widths", [(1, 1), (3, 31, 32, 33, 64), (130, 65, 255), (640, 64, 64)])
def test_mlp_of_any_size(native: ModuleType, poison: list[str], widths: tuple[int, ...], rows: int):
    make = Maker(2, torch.float32)
    assert_as_good_as_reference(
        native.mlp, reference.mlp, (make.normal(rows, widths[0]), chain(make, *widths))
    )


def test_mlp_sums_many_rows_as_well_as_the_reference(native: ModuleType):
    make = Maker(3, torch.float32)
    layers = chain(make, 40, 33, 17)
    assert_as_good_as_reference(native.mlp, reference.mlp, (make.normal(16384, 40), layers))


def test_mlp_takes_any_leading_axes(native: ModuleType):
    make = Maker(4)
    layers = chain(make, 6, 5, 4)
    for shape in ((6,), (2, 3, 6), (2, 1, 3, 6), (0, 6), (3, 0, 6)):
        x = make.normal(*shape)
        ours, theirs = results(native.mlp, (x, layers)), results(reference.mlp, (x, layers))
        assert ours[0].shape == (*shape[:-1], 4)
        for our, their in zip(ours, theirs, strict=True):
            torch.testing.assert_close(our, their)


def joined(feat: Feat, layers: Layers) -> torch.Tensor:
    return reference.mlp(torch.cat(feat, -1), layers)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [0, 1, 17, 1000])
@pytest.mark.parametrize("classes", [2, 3, 16])
def test_mlp_takes_one_hots_apart(
    native: ModuleType, isa: str, poison: list[str], classes: int, rows: int, dtype: torch.dtype
):
    """Also what is not quite one-hot: nothing but the time depends on it."""
    make = Maker(4, dtype)
    stoch = torch.eye(classes, dtype=dtype)[make.index(rows, 5, high=classes)].flatten(1)
    if rows:
        stoch[0, :] = torch.linspace(-1, 1, 5 * classes)
    feat, layers = Feat(make.normal(rows, 33), stoch.requires_grad_()), chain(make, 33 + 5 * classes, 70, 7)
    if rows:
        assert_as_good_as_reference(native.mlp, joined, (feat, layers))
    for args in ((feat, layers), (feat.detach(), layers), (feat, mapped(torch.Tensor.detach, layers))):
        ours, theirs = results(native.mlp, args), results(joined, args)
        for our, their in zip(ours, theirs, strict=True):
            torch.testing.assert_close(our, their, rtol=1e-4, atol=1e-4)


def test_reference_takes_features_in_two_parts():
    make = Maker(5)
    feat = Feat(make.normal(2, 3, 6), make.normal(2, 3, 4))
    for layers in (chain(make, 10, 5, 4), (), (make.layer(10, 5, blocks=5),)):
        for our, their in zip(
            results(reference.mlp, (feat, layers)), results(joined, (feat, layers)), strict=True
        ):
            torch.testing.assert_close(our, their)


def test_mlp_of_no_layers_is_the_identity(native: ModuleType):
    x = torch.zeros(3, 4)
    assert native.mlp(x, ()) is x
    assert native.mlp(Feat(x, x), ()).shape == (3, 8)


def test_parameters_may_be_missing(native: ModuleType):
    make = Maker(5)
    layers = (
        Layer(make.normal(7, 4), None, None, None, "rms", "silu"),
        Layer(make.normal(6, 7), None, make.normal(6), None, "layer", "elu"),
        Layer(make.normal(5, 6), make.normal(5), None, make.normal(5), "layer", "none"),
        Layer(make.normal(3, 5)),
    )
    args = make.normal(9, 4), layers
    for our, their in zip(results(native.mlp, args), results(reference.mlp, args), strict=True):
        torch.testing.assert_close(our, their)


@pytest.mark.parametrize("seed", range(12))
def test_only_wanted_gradients_are_computed(native: ModuleType, poison: list[str], seed: int):
    """Any subset of the inputs may want a gradient; the others get none, and these are not changed by it."""
    make = Maker(6)
    args = make.normal(20, 6), chain(make, 6, 9, 8, 7, norm="layer", linear=seed % 2 == 0)
    everything = iter(results(native.mlp, args)[1:])
    kept = torch.rand(len(list(leaves(args))), generator=torch.Generator().manual_seed(seed)) < 0.3
    kept[seed % len(kept)] = True
    wanted = iter(kept.tolist())
    some = mapped(lambda x: x.detach().requires_grad_(next(wanted)), args)
    expected = [g for g, want in zip(everything, kept.tolist(), strict=True) if want]
    assert same(results(native.mlp, some)[1:], expected)


def test_constant_rows_and_huge_values(native: ModuleType):
    x = torch.full((2, 70), 1e4)
    assert native.norm_act(x, None, None, "layer", "none").abs().max() < 1e-2
    assert torch.equal(native.norm_act(torch.zeros(2, 70), None, None), torch.zeros(2, 70))
    for act in ACTS:
        x = torch.tensor([[-1e30, -100.0, -0.0, 100.0, 1e30]], requires_grad=True)
        ours, theirs = (
            results(op, (x, None, None, "none", act)) for op in (native.norm_act, reference.norm_act)
        )
        if act == "gelu":  # its own derivative overflows to 0 * infinity in PyTorch
            ours, theirs = ours[:1], theirs[:1]
        for our, their in zip(ours, theirs, strict=True):
            torch.testing.assert_close(our, their)


def test_nan_stays(native: ModuleType):
    x = torch.full((1, 20), torch.nan)
    for act in ACTS:
        assert native.norm_act(x, None, None, "none", act).isnan().all()
        assert native.norm_act(x, None, None, "rms", act).isnan().all()


def test_gradcheck(native: ModuleType):
    make = Maker(10)
    args = make.normal(3, 4), chain(make, 4, 5, 3, norm="layer", act="gelu")
    flat = [x.detach().requires_grad_() for x in leaves(args)]

    def fn(*flat: torch.Tensor) -> torch.Tensor:
        rest = iter(flat)
        return native.mlp(*mapped(lambda _: next(rest), args))

    assert torch.autograd.gradcheck(fn, flat)


def test_several_nets_give_what_each_gives(
    native: ModuleType, isa: str, poison: list[str], two_threads: None
):
    """More nets than a call of the kernel takes, one of them of no layer; gradients of the input are summed."""
    make = Maker(11, torch.float32)
    x, nets = make.normal(300, 20), [chain(make, 20, 9 + i, 3) for i in range(10)]
    nets.insert(4, ())
    shared, apart = native.mlps(x, nets), [native.mlp(x, layers) for layers in nets]
    assert len(shared) == 11 and same(list(shared), apart)
    params = list(leaves(tuple(nets)))
    ours, theirs = (
        torch.autograd.grad([y.square().sum() for y in ys], [x, *params]) for ys in (shared, apart)
    )
    for our, their in zip(
        ours, theirs, strict=True
    ):  # a small net alone gets one thread, and other partial sums
        torch.testing.assert_close(our, their, rtol=1e-5, atol=1e-5 * float(their.abs().max()))


def test_nets_without_gradient_keep_nothing_and_get_none(native: ModuleType, poison: list[str]):
    """Nor does a net cost anything whose output nobody used."""
    make = Maker(12)
    x, first, second = make.normal(9, 6).detach(), chain(make, 6, 5, 3), chain(make, 6, 4, 2)
    fixed, one, other = native.mlps(x, (mapped(torch.Tensor.detach, second), first, second))
    assert not fixed.requires_grad and one.requires_grad and other.requires_grad
    found = torch.autograd.grad(one.sum(), [*leaves(first), *leaves(second)], allow_unused=True)
    count = len(list(leaves(first)))
    assert same(list(found[:count]), results(native.mlp, (x, first))[1:])
    assert all(g is None for g in found[count:])
