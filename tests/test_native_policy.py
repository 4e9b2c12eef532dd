"""The compiled policy step against the reference, and how it follows parameters that it has seen before."""

from types import ModuleType
from typing import Any

import pytest
import torch

from fastdream.ops import reference
from fastdream.ops.params import Categorical, Gaussian

from .native_tools import recorded
from .ops_tools import A, C, D, E, H, Maker, S, leaves, mapped

F = 5
pytestmark = pytest.mark.usefixtures("native")


def plain(tree: Any, dtype: torch.dtype) -> Any:
    """Without gradient; floats in dtype."""
    return mapped(lambda x: x.detach().to(dtype) if x.is_floating_point() else x, tree)


def arguments(
    n: int, core: Any = "block", *, layers: int = 2, absolute: bool = False, seed: int = 0
) -> tuple:
    """Arguments of policy_step with the latent's draw to replay and the most likely action."""
    make = Maker(seed)
    encoder = tuple(make.layer(F if i == 0 else E, E) for i in range(layers))
    state = *make.state(n), make.normal(n, A, scale=2.0), make.normal(n, F if layers else E)
    reset = torch.arange(n) % 3 == 1
    return (
        encoder,
        make.rssm(core, absolute=absolute),
        make.actor(),
        *state,
        reset,
        None,
        None,
        make.index(n, S),
    )


def assert_as_good_as_reference(native: ModuleType, args: tuple, dtype: torch.dtype) -> None:
    """Error against float64 at most twice the reference's own at the same dtype, plus a few roundings."""
    truth = leaves(reference.policy_step(*plain(args, torch.float64)))
    theirs = leaves(reference.policy_step(*plain(args, dtype)))
    ours = leaves(native.policy_step(*plain(args, dtype)))
    for i, (our, their, true) in enumerate(zip(ours, theirs, truth, strict=True)):
        allowed = 2 * float((their.double() - true).abs().max()) + 32 * torch.finfo(dtype).eps * (
            1 + float(true.abs().max())
        )
        assert our.dtype == their.dtype and float((our.double() - true).abs().max()) <= allowed, i


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 2, 3, 7, 33])
@pytest.mark.parametrize("core", ["block", "layernorm"])
def test_agrees_with_reference(native: ModuleType, poison: list[str], core: Any, n: int, dtype: torch.dtype):
    assert_as_good_as_reference(native, arguments(n, core), dtype)
    assert "new_empty" in poison


@pytest.mark.parametrize("layers", [0, 1, 3])
@pytest.mark.parametrize("absolute", [False, True])
def test_any_encoder_and_posterior(native: ModuleType, layers: int, absolute: bool):
    assert_as_good_as_reference(native, arguments(5, layers=layers, absolute=absolute), torch.float32)


def test_an_encoder_of_no_features_gives_its_biases(native: ModuleType):
    args = list(arguments(3, layers=1))
    args[0] = (args[0][0]._replace(weight=torch.empty(E, 0)),)
    args[6] = torch.empty(3, 0)
    assert_as_good_as_reference(native, tuple(args), torch.float32)


def test_a_posterior_of_one_layer_and_a_deeper_core(native: ModuleType):
    args, make = list(arguments(4)), Maker(1)
    post = (make.layer(D + E, S * C, "none", "none"),)
    args[1] = args[1]._replace(post=post, core=make.core("block", S * C, 2))
    assert_as_good_as_reference(native, tuple(args), torch.float32)


def raw_arguments(n: int, widths: tuple[int, ...], seed: int = 0) -> tuple:
    """Arguments with observations as an environment shows them, of which some are missing."""
    args, make = list(arguments(n, layers=0, seed=seed)), Maker(seed + 1)
    args[0] = (make.layer(sum(widths), E),)
    args[6] = make.normal(n, sum(widths), scale=30.0).detach()
    missing = torch.arange(n) % 3 == 1
    args[6][missing, torch.randint(sum(widths), (int(missing.sum()),))] = -torch.inf
    return (*args, widths)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("widths", [(1,), (24,), (3, 17, 1), (16, 40)])
def test_raw_vectors(native: ModuleType, isa: str, widths: tuple[int, ...], dtype: torch.dtype):
    for n in (1, 7):
        assert_as_good_as_reference(native, raw_arguments(n, widths), dtype)


def test_raw_vectors_without_an_encoder(native: ModuleType):
    """They are the embedding then; and the numbers of the last call are not taken for those of this one."""
    args = list(plain(arguments(3, layers=0), torch.float32))
    for vectors in ((E,), (), (1, E - 1)):
        ours, theirs = (f(*args, vectors) for f in (native.policy_step, reference.policy_step))
        torch.testing.assert_close(ours[0].logit, theirs[0].logit)
    for vectors in ((E - 1,), (-1, E + 1)):
        with pytest.raises(ValueError, match=f"are not {E} features"):
            native.policy_step(*args, vectors)


@pytest.mark.parametrize("greedy", [False, True])
def test_draws_agree(native: ModuleType, greedy: bool):
    """In float64, where no draw is so near to a limit that rounding decides."""
    args, noise = plain(arguments(200), torch.float64), torch.rand(200, S, dtype=torch.float64)
    draws = noise, None if greedy else torch.rand(200, 2, dtype=torch.float64)
    ours, theirs = (leaves(f(*args[:8], *draws)) for f in (native.policy_step, reference.policy_step))
    for got, want in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_any_strides(native: ModuleType):
    args = plain(arguments(4), torch.float64)
    strided = mapped(lambda x: x.repeat_interleave(2, -1)[..., ::2] if x.dim() else x, args)
    for got, want in zip(
        leaves(native.policy_step(*strided)), leaves(reference.policy_step(*args)), strict=True
    ):
        torch.testing.assert_close(got, want)


def test_no_rows(native: ModuleType):
    step, action = native.policy_step(*plain(arguments(0), torch.float32))
    assert step.deter.shape == (0, D) and step.index.shape == (0, S) and action.shape == (0, A)


def test_parameters_may_change_in_every_way(native: ModuleType):
    """In place, by other memory under the same tensor, by the same memory in another order, by another dtype, and where
    they are copied at each call.
    """
    args = list(plain(arguments(2), torch.float32))
    weight = args[1].core.gates.weight

    def check() -> None:
        ours, theirs = native.policy_step(*args), reference.policy_step(*args)
        torch.testing.assert_close(ours[0].deter, theirs[0].deter)

    check()
    weight.mul_(2)
    check()
    weight.data = weight * 2
    check()
    square = args[0][1].weight
    square.t_()
    check()
    square.t_()
    check()
    weight.data = weight.transpose(1, 2).contiguous().transpose(1, 2)
    check()
    weight.mul_(2)
    check()
    weight.data = weight.double()
    with pytest.raises(ValueError, match="a parameter is torch.float64"):
        native.policy_step(*args)


def test_inputs_may_change_in_every_way(native: ModuleType):
    """After others of the same model: rows, strides, dtypes, how they are drawn and prepared."""
    args, noise = list(plain(raw_arguments(3, (2, 3)), torch.float32)), torch.rand(5, S)
    more = list(plain(raw_arguments(5, (2, 3), seed=7), torch.float32))
    more[:3] = args[:3]
    strided = [
        *args[:3],
        *mapped(lambda x: x.repeat_interleave(2, -1)[..., ::2], tuple(more[3:6])),
        *more[6:],
    ]
    double = [*more[:4], *(x.double() for x in more[4:7]), *more[7:]]
    drawn = [*more[:8], noise, torch.rand(5, 2), None, (2, 3)]
    prepared = [*more[:6], more[6].clamp(-9), *more[7:-1], ()]
    turned = [*more[:6], torch._neg_view(-more[6]), *more[7:]]
    for case in (args, more, turned, strided, more, double, drawn, prepared, [*more[:-1], (5,)], args):
        ours, theirs = native.policy_step(*case), reference.policy_step(*case)
        torch.testing.assert_close(ours[0].logit, theirs[0].logit)
        torch.testing.assert_close(ours[1], theirs[1])
    for i, other in ((3, more[3].to("meta")), (4, more[4].to("meta")), (7, more[7].numpy())):
        with pytest.raises((ValueError, AttributeError)):
            native.policy_step(*more[:i], other, *more[i + 1 :])


def test_tensors_that_cannot_be_looked_at(native: ModuleType, monkeypatch: pytest.MonkeyPatch):
    """Where torch does not say how, it is asked itself."""
    args = plain(arguments(3), torch.float32)
    with monkeypatch.context() as patched:
        patched.setattr(native.policy, "TENSORS_SHARED", False)
        asked = leaves(native.policy_step(*args))
    assert native.library.TENSORS_SHARED
    for got, want in zip(leaves(native.policy_step(*args)), asked, strict=True):
        assert torch.equal(got, want)


def test_models_take_turns(native: ModuleType):
    models = [plain(arguments(2, seed=seed), torch.float32) for seed in range(4)]
    for args in models * 2:
        torch.testing.assert_close(native.policy_step(*args)[0].deter, reference.policy_step(*args)[0].deter)
    assert len(native.policy._MODELS) <= 2


@pytest.mark.parametrize("n", [3, 32])
def test_threads_share_rows_or_columns(native: ModuleType, n: int):
    """A model so large that two threads share even a single row's products, and rows where there are enough."""
    make, wide, units = Maker(2, torch.float32), 1280, 24
    gates = make.layer(wide, 3 * wide, "none", "none", 8)
    hidden = (make.layer(wide + 8 * 3 * units, wide, blocks=8),)
    inputs = make.layer(wide, units), make.layer(S * C, units), make.layer(A, units)
    rssm, _, actor = arguments(n)[1], None, make.actor(wide + S * C)
    post = (make.layer(wide + E, H), make.layer(H, S * C, "none", "none"))
    rssm = rssm._replace(core=type(rssm.core)(*inputs, hidden, gates), post=post)
    state = make.normal(n, wide), make.onehot(n, S), make.normal(n, A), make.normal(n, F)
    args = plain(((make.layer(F, E),), rssm, actor, *state, torch.arange(n) % 2 == 0), torch.float32)
    draws = torch.rand(n, S), torch.rand(n, 2), None, (2, F - 2)
    alone = list(leaves(native.policy_step(*args, *draws)))
    torch.set_num_threads(2)
    try:
        together = list(leaves(native.policy_step(*args, *draws)))
    finally:
        torch.set_num_threads(1)
    assert gates.weight.numel() >= 2**19 and all(
        torch.equal(a, b) for a, b in zip(alone, together, strict=True)
    )
    index = alone[3]
    assert_as_good_as_reference(native, (*args, None, None, index, (2, F - 2)), torch.float32)


def test_every_instruction_set_agrees(native: ModuleType):
    used = native.library.C.isa()
    try:
        for isa in native.library.C.isas():
            native.library.C.use_isa(isa)
            for dtype in (torch.float32, torch.float64):
                assert_as_good_as_reference(native, arguments(5), dtype)
    finally:
        native.library.C.use_isa(used)


def test_compiles_as_one_graph(native: ModuleType):
    args = plain(raw_arguments(3, (2, 3)), torch.float64)
    compiled = torch.compile(lambda *xs: native.policy_step(*xs)[1] * 2, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*args), reference.policy_step(*args)[1] * 2)


def test_opcheck(native: ModuleType, monkeypatch: pytest.MonkeyPatch):
    op = torch.ops.fastdream.policy_step
    args = list(plain(arguments(3), torch.float32))
    args[3].requires_grad_()  # so that the dispatcher is asked
    with monkeypatch.context() as patched:
        caught = recorded(patched, "policy_step")
        step, action = native.policy_step(*args)
    assert not step.deter.requires_grad and not action.requires_grad
    assert set(torch.library.opcheck(op.default, caught[0]).values()) == {"SUCCESS"}


@pytest.mark.parametrize(
    ("position", "change", "message"),
    [
        (1, lambda x: x._replace(latent=Gaussian(S)), "core.stoch maps 15 to 4, expected 3 to 4"),
        (1, lambda x: x._replace(latent=Categorical(S, C + 1)), "core.stoch maps 15 to 4, expected 18 to 4"),
        (1, lambda x: x._replace(post=x.post[:-1]), r"post has 2 layers that give 4, expected 3 \* 5"),
        (0, lambda x: x[::-1], r"encoder\[1\].weight has shape \[4, 5\], expected \[out, 4\]"),
        (
            0,
            lambda x: (x[0], mapped(lambda p: p[:-1], x[1])),
            "encoder gives 3 features, the posterior takes 4",
        ),
        (3, lambda x: x[:, :-1], r"deter has shape \[3, 7\], expected \[3, 8\]"),
        (3, lambda x: x.bfloat16(), "deter is torch.bfloat16, expected torch.float32 or torch.float64"),
        (4, lambda x: x[:-1], r"stoch has shape \[2, 3, 5\], expected \[3, 3, 5\]"),
        (5, lambda x: x[:, 1:], r"action has shape \[3, 2\], expected \[3, 3\]"),
        (6, lambda x: x[:, 1:], r"features has shape \[3, 4\], expected \[3, 5\]"),
        (7, lambda x: x.float(), "reset is torch.float32 on cpu, expected torch.bool on cpu"),
        (8, lambda x: torch.rand(3, S + 1), None),
        (10, lambda x: x - 1, r"index has entries outside of 0 ... 4"),
        (10, lambda x: None, "needs noise to draw with, or the index"),
        (4, lambda x: None, r"stoch is None, expected a tensor of shape \[3, 3, 5\]"),
        (7, lambda x: None, r"reset is None, expected a tensor of shape \[3\]"),
    ],
)
def test_bad_input_is_named(native: ModuleType, position: int, change: Any, message: str | None):
    args = list(plain(arguments(3), torch.float32))
    native.policy_step(*args)  # what ran last is looked at first
    args[position] = change(args[position])
    if message is None:  # noise: only looked at where nothing is replayed
        args[10], message = None, r"noise has shape \[3, 4\], expected \[3, 3\]"
    with pytest.raises(ValueError, match=message):
        native.policy_step(*args)
