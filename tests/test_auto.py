"""Which backend takes a call under "auto": by dtype, by kind of model, by gradients, by size."""

from collections.abc import Callable
from inspect import getdoc, signature
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from fastdream import ops
from fastdream.ops import auto, auto_cpu, auto_cuda, reference
from fastdream.ops.params import ActionKind, Gaussian

from .ops_tools import A, D, E, H, Maker, S


def served(op: str, *args: Any, **kwargs: Any) -> str:
    """Who takes the call; neither computes anything."""
    function, _ = auto.route(op, lambda *a, **k: "native", _named(getattr(reference, op)))
    return function(*args, **kwargs)


def _named(function: Callable[..., Any]) -> Callable[..., Any]:
    def stand_in(*args: Any, **kwargs: Any) -> str:
        return "reference"

    stand_in.__wrapped__ = function  # what inspect.signature follows
    return stand_in


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("op", [op for op in auto.RULES if op in ops.OPS])
def test_all_but_float32_goes_to_the_reference(op: str, dtype: torch.dtype):
    """Of the tensor that decides: the first of an op, or a model's deter."""
    rows, rule, maker = 2 + auto.LEAST.get(op, 0) // D, auto.RULES[op], Maker()
    x = torch.zeros(rows, D, dtype=dtype)
    models = "prior", "observe", "observe_step", "imagine", "imagine_step", "rollout"
    model = maker.rssm() if op in models else maker.core("block")
    args: list[Any] = [x] if rule.at == 0 else [model, *[None] * (rule.at - 1), x]
    if op in ("laprop_", "gaussian_kl"):
        args = [[x, x]]
    if op == "conv_spread":
        args = [x, torch.zeros(4, auto_cpu.LEAST_CHANNELS, 1, 1, 1, dtype=dtype)]
    if op == "mlp":
        args = [x, (maker.layer(D, H),)]
    if op == "mlps":
        args = [x, [(maker.layer(D, H),)]]
    if op == "conv_pool":
        args = [x, x]
    if op == "lstm_mdn_step":
        args = [None, x]
    if op == "imagine":
        args = [model, maker.actor(), x]
    if op == "policy_step":
        args = [(), maker.rssm(), maker.actor(), x]
    with torch.no_grad():
        assert served(op, *args) == ("native" if dtype == torch.float32 else "reference")


@torch.no_grad()
def test_what_native_refuses_goes_to_the_reference():
    maker, deter = Maker(), torch.zeros(2, D)
    model, actor = maker.rssm(), maker.actor()
    deep = model._replace(post=model.post[:1] * 8 + model.post[1:])
    assert served("observe", model, deter) == "native"
    assert served("observe", deep, deter) == "reference"
    others = {"layers": 9 * actor.layers}, {"heads": ()}, {"heads": actor.heads * 33}
    for other in (actor._replace(**changes) for changes in others):
        assert served("imagine", model, actor, deter) == "native"
        assert served("imagine", model, other, deter) == "reference"
        assert served("policy_step", (), model, other, deter) == "reference"
    assert served("policy_step", 9 * actor.layers, model, actor, deter) == "reference"


def test_images_as_they_are_stored():
    """What they are computed in decides."""
    stored, weight = torch.zeros(1, 4, 4, 3, dtype=torch.uint8), torch.zeros(2, 3, 5, 5)
    assert served("conv_pool", stored, weight, dtype=torch.float32) == "native"
    assert served("conv_pool", stored, weight, dtype=torch.bfloat16) == "reference"
    assert served("conv_pool", stored.bfloat16(), weight) == "reference"


@torch.no_grad()
@pytest.mark.parametrize("op", ["observe", "observe_step", "prior", "imagine_step", "rollout"])
def test_native_computes_every_model(op: str):
    maker = Maker()
    for core in ("block", "layernorm", "gru", "gru_block_cell"):
        for latent in (None, Gaussian(S)):
            model, deter = maker.rssm(core, latent), torch.zeros(2 + auto.LEAST.get(op, 0) // D, D)
            assert served(op, model, deter) == "native"
            deep = model._replace(prior=model.prior * 9, post=model.post * 9)
            assert served(op, deep, deter) == "reference"


@torch.no_grad()
def test_native_acts_in_every_way():
    maker, deter = Maker(), torch.zeros(2, D)
    model, actor = maker.rssm("gru", Gaussian(S)), maker.actor()
    ways = [actor._replace(layers=())]
    for kind in get_args(ActionKind):
        ways.append(actor._replace(heads=(actor.heads[0]._replace(kind=kind),)))
    for way in ways:
        assert served("imagine", model, way, deter) == "native"
        assert served("policy_step", (), model, way, deter) == "native"


@torch.no_grad()
def test_models_and_actors_that_triton_leaves_to_the_reference():
    maker, deter = Maker(), torch.zeros(2, D)
    known, actor = maker.rssm(), maker.actor()
    rules = {op: rule.serves for op, rule in auto_cuda.TRITON_RULES.items()}
    earlier = maker.rssm("gru"), maker.rssm("gru_block_cell"), maker.rssm("layernorm", Gaussian(S))
    for model in (known, *earlier, other := known._replace(prior=9 * known.prior, post=9 * known.post)):
        served = model is not other
        assert rules["rollout"](model, deter) is rules["imagine_step"](model, deter) is served
        assert (
            rules["imagine"](model, actor, deter) is rules["policy_step"]((), model, actor, deter) is served
        )
    ways = {
        kind: actor._replace(heads=(actor.heads[0]._replace(kind=kind),)) for kind in get_args(ActionKind)
    }
    for kind, way in (*ways.items(), ("no layers", actor._replace(layers=()))):
        served = kind != "no layers"
        assert rules["imagine"](known, way, deter) is rules["policy_step"]((), known, way, deter) is served


def test_dreams_with_gradients():
    """Native's where there are many, the actor included; along given actions the reference's."""
    maker = Maker(dtype=torch.float32)
    rssm, actor, state = maker.rssm(), maker.actor(), maker.state(2)
    fixed = tuple(x.detach() for x in state)
    plain = reference.twohot_bins(5)  # any tensor without gradient
    many = maker.state(auto_cpu.LEAST_LEARNED)
    assert served("imagine", rssm, actor, *many) == served("imagine", rssm, actor, *map(Tensor.detach, many))
    assert served("imagine", rssm, actor, *many) == served("imagine", rssm, actor, deter=many[0]) == "native"
    assert served("imagine", rssm, actor, *state) == served("imagine", rssm, actor, *fixed) == "reference"
    gru, cut = maker.rssm("gru", Gaussian(S)), actor.heads[0]._replace(kind="tanh_normal")
    assert served("imagine", gru, actor._replace(heads=(cut,)), *many) == "native"
    assert served("imagine", rssm._replace(prior=9 * rssm.prior), actor, *many) == "reference"
    for op in ("rollout", "imagine_step"):
        assert served(op, rssm, *state) == served(op, rssm, *fixed) == "reference"
    with torch.no_grad():
        assert served("imagine", rssm, actor, *state) == served("rollout", rssm, *state) == "native"
        assert served("imagine", gru, actor, *state) == "native"
    frozen = rssm._replace(core=None, prior=(), post=())
    assert served("rollout", frozen, *fixed, plain, noise=plain) == "native"
    assert served("rollout", frozen, *fixed, plain, noise=maker.normal(2, A)) == "reference"


def test_block_layers_go_to_the_reference():
    maker = Maker()
    x, dense, block = maker.normal(2, D), maker.layer(D, D), maker.layer(D, D, blocks=2)
    assert auto_cpu.dense_layers(x, (dense, dense)) and not auto_cpu.dense_layers(x, (dense, block))
    assert auto_cpu.all_dense(x, [(dense,), (dense, dense)]) and not auto_cpu.all_dense(
        x, [(dense,), (block,)]
    )


def test_chains_that_triton_leaves_to_the_reference():
    """Block layers, and rows too wide for one program."""
    maker = Maker()
    rules = {op: auto_cuda.TRITON_RULES[op].serves for op in ("mlp", "mlps", "prior")}
    dense, block = maker.layer(D, D), maker.layer(D, D, blocks=2)
    broad = dense._replace(weight=torch.empty(auto_cuda.WIDEST + 1, D, device="meta"))
    x, model = torch.zeros(2, D), maker.rssm()
    for last, served in ((dense, True), (block, False), (broad, False)):
        assert rules["mlp"](x, (dense, last)) is served
        assert rules["mlps"](x, [(dense,), (dense, last)]) is served
        assert rules["prior"](model._replace(prior=(dense, last)), x) is served


def test_vectors_that_triton_leaves_to_the_reference():
    """Named or not: of double precision, with gradients, and as one-hots too wide for one program."""

    def served(op: str, *args: Any, **kwargs: Any) -> str:
        limits, stand_in = auto.LIMITS["triton", "cuda"], _named(getattr(reference, op))
        return auto.route(op, lambda *a, **k: "triton", stand_in, limits)[0](*args, **kwargs)

    x, many = torch.zeros(2, 3), auto_cuda.WIDEST // 3
    told = {"squish": True, "dtype": torch.float32}
    assert served("vector_losses", outs=(x,), targets=(x,), squish=True) == "triton"
    for parts, classes, backend in (
        (x, 0, "triton"),
        (x.double(), 0, "reference"),
        (x.clone().requires_grad_(), 0, "reference"),
        (x.int(), many, "triton"),
        (x.int(), many + 1, "reference"),
    ):
        assert served("join_inputs", (parts,), (classes,), *told.values()) == backend
        assert served("join_inputs", parts=(parts,), classes=(classes,), **told) == backend


def test_sizes_at_which_native_loses(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(auto.LEAST, "symlog", 100)
    assert served("symlog", torch.zeros(99)) == "reference"
    assert served("symlog", torch.zeros(10, 10)) == "native"
    _, but = auto.route("symlog", reference.symlog, reference.symlog)
    assert but == "reference for half and double precision, less than 100 elements"


def test_images_of_few_channels_go_to_the_reference():
    x, channels = torch.zeros(2, 2, 2, 3), auto_cpu.LEAST_CHANNELS
    assert served("conv_spread", x, torch.zeros(4, channels, 3, 3, 3)) == "native"
    assert served("conv_spread", x, torch.zeros(4, channels - 1, 3, 3, 3)) == "reference"


def test_arguments_may_be_named():
    assert served("symlog", x=torch.zeros(3)) == "native"
    assert served("symlog", x=torch.zeros(3).half()) == "reference"
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'logit'"):
        auto.route("categorical_sample", reference.symlog, reference.categorical_sample)[0](noise=None)


def test_ops_without_a_rule_are_native_s_at_every_call():
    function, but = auto.route("lambda_return", max, reference.lambda_return)
    assert function(1, 2) == 2 and but == ""


def test_rules_and_limits_are_of_ops_that_exist():
    assert set(auto.LEAST) <= set(auto.RULES)
    assert set(auto.RULES) <= {*ops.OPS, "mlp"}


def test_a_named_backend_takes_every_call(native: Any):
    chosen = ops.load("native")
    assert chosen.symlog is native.symlog
    with pytest.raises(ValueError, match="bfloat16"):
        chosen.symlog(torch.zeros(3, dtype=torch.bfloat16))


def test_auto_computes_what_native_does_not(native: Any):
    chosen = ops.load()
    x = torch.linspace(-3, 3, 7, dtype=torch.bfloat16)
    assert torch.equal(chosen.symlog(x), reference.symlog(x))
    assert torch.equal(chosen.symlog(x.float()), native.symlog(x.float()))
    row = next(row for row in ops.table(chosen) if row.op == "symlog")
    assert row.backend == "native" and row.reason.startswith("reference for half and double precision")


def test_says_what_it_computes(native: Any):
    """help(table.mlp) is that of the op."""
    for op in auto.RULES:
        if op in ops.OPS:
            chosen, plain = getattr(ops.load(), op), getattr(reference, op)
            words = f"{op}{signature(plain)}\n\n{getdoc(plain)}"
            assert chosen.__name__ == op and signature(chosen) == signature(plain) and chosen.__doc__ == words


def test_compiles_as_one_graph(native: Any):
    chosen = ops.load()
    compiled = torch.compile(lambda x: chosen.symlog(x) * 2, fullgraph=True, backend="aot_eager")
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.linspace(-3, 3, 7, dtype=dtype)
        torch.testing.assert_close(compiled(x), reference.symlog(x) * 2)


def test_a_policy_step_compiles_as_one_graph_after_another_model_acted(native: Any):
    """For any number of environments."""
    m, chosen = Maker(dtype=torch.float32), ops.load()
    actor, draws = m.actor(), (torch.full((3, S), 0.5), torch.full((3, 2), 0.5))
    inputs = *m.state(3), m.normal(3, A), m.normal(3, D), torch.zeros(3, dtype=torch.bool), *draws
    compiled = torch.compile(chosen.policy_step, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows, model in ((3, m.rssm()), (2, m.rssm()), (3, m.rssm("layernorm"))):
        args = (m.layer(D, E),), model, actor, *(x[:rows].detach() for x in inputs)
        expected, given = chosen.policy_step(*args)[1], compiled(*args)[1]
        torch.testing.assert_close(given, expected)
