"""TorchRL's DreamerV3, where torchrl is installed: theirs and ours, with the same draws."""

import importlib
import sys
from collections.abc import Callable
from importlib import import_module, metadata, util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastdream.integrations import torchrl as integration

from .integration_tools import assert_as_good, randomized, wanting

PEERS = Path(__file__).parents[1] / "benchmarks" / "peers"
B, T, D, S, K, A, E = 3, 5, 16, 3, 4, 2, 7


@pytest.fixture
def models() -> ModuleType:
    """torchrl.modules.models.model_based of the release that the integration is made for."""
    if util.find_spec("torchrl") is None:
        pytest.skip("torchrl is not installed; pip install torchrl==0.14.1")
    if (found := metadata.version("torchrl")) != "0.14.1":
        pytest.skip(f"torchrl {found} is installed; pip install torchrl==0.14.1")
    return import_module("torchrl.modules.models.model_based")


@pytest.fixture
def losses(models: ModuleType) -> ModuleType:
    return import_module("torchrl.objectives.dreamer_v3")


def check_alike(owner: Any, name: str, module: nn.Module, *inputs: Any) -> None:
    """A method of the module, theirs and ours."""
    stock = getattr(owner, name)
    with integration.install():
        ours = getattr(owner, name)
        assert ours is not stock
        assert_as_good(stock, ours, module, inputs)
    assert getattr(owner, name) is stock


def onehots(*lead: int) -> Tensor:
    return nn.functional.one_hot(torch.randint(K, (*lead, S)), K).float().flatten(-2)


def prior(models: ModuleType, **changes: Any) -> Any:
    settings = {
        "action_shape": (A,),
        "hidden_dim": 6,
        "rnn_hidden_dim": D,
        "num_categoricals": S,
        "num_classes": K,
    }
    settings |= {"action_dim": A, "recurrent_model": "block_gru", "num_blocks": 2, "unimix": 0.01}
    return randomized(models.RSSMPriorV3(**settings | changes))


def posterior(models: ModuleType) -> Any:
    sizes = {
        "hidden_dim": 6,
        "num_categoricals": S,
        "num_classes": K,
        "rnn_hidden_dim": D,
        "obs_embed_dim": E,
    }
    return randomized(models.RSSMPosteriorV3(**sizes, use_rms_norm=True, unimix=0.01))


@pytest.mark.parametrize("lead", [(B,), (B, T)], ids=str)
def test_networks(models: ModuleType, lead: tuple[int, ...]):
    inputs = onehots(*lead).requires_grad_(), wanting(*lead, D), wanting(*lead, A)
    check_alike(models._DreamerV3BlockGRU, "forward", prior(models, num_layers=2).rnn, *inputs)
    check_alike(models.RSSMPriorV3, "_belief_and_logits", prior(models), *inputs)
    check_alike(models.RSSMPosteriorV3, "_logits", posterior(models), inputs[1], wanting(*lead, E))
    net = randomized(models.DreamerV3MLP(D + S * K, 5, depth=2, num_cells=8))
    check_alike(models.DreamerV3MLP, "forward", net, inputs[1], inputs[0])


def test_other_cores_are_theirs(models: ModuleType):
    net = randomized(models.RSSMPriorV3(action_shape=(A,), hidden_dim=6, rnn_hidden_dim=D, action_dim=A))
    inputs = torch.randn(B, 32 * 32), torch.randn(B, D), torch.randn(B, A)
    theirs = net._belief_and_logits(*inputs)
    with integration.install():
        assert all(map(torch.equal, net._belief_and_logits(*inputs), theirs))


def test_draws_of_given_numbers(models: ModuleType):
    logits, uniform = 3 * torch.randn(B, 500, K), torch.rand(B, 500)
    theirs = models._straight_through_categorical(logits, 0.01, uniform)
    with integration.install():
        ours = models._straight_through_categorical(logits, 0.01, uniform)
        torch.manual_seed(1)
        own = models._straight_through_categorical(logits, 0.01)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    torch.manual_seed(1)
    torch.testing.assert_close(own, models._straight_through_categorical(logits, 0.01), rtol=0, atol=1e-6)


class Given(nn.Module):
    """Tensors that are learned."""

    def __init__(self, *tensors: Tensor) -> None:
        super().__init__()
        self.given = nn.ParameterList(map(nn.Parameter, tensors))


@pytest.mark.parametrize("free", [0.0, 1.0])
def test_kl(losses: ModuleType, free: float):
    given = Given(*3 * torch.randn(2, B, T, S, K))
    stock = losses.categorical_kl_terms
    both: Callable[..., Any] = lambda f: lambda m: f(*m.given, free, 0.01)  # noqa: E731
    with integration.install():
        assert_as_good(both(stock), both(losses.categorical_kl_terms), given, ())


@pytest.mark.parametrize("count", [255, 6])
def test_twohot(models: ModuleType, losses: ModuleType, count: int):
    bins, given = models._default_bins(count), Given(torch.randn(8, count))
    target = torch.tensor([0.0, 1.3, -2e5, 1e12, -1e12, bins[2].item(), bins[-1].item(), 0.5])[:, None]
    loss: Callable[..., Any] = lambda f: lambda m, x: f(m.given[0], x, bins)  # noqa: E731
    mean: Callable[..., Any] = lambda f: lambda m: f(m.given[0], bins) / 1e8  # noqa: E731
    for owner in (models, losses):
        stock = owner.two_hot_cross_entropy, owner.two_hot_decode
        with integration.install():
            assert_as_good(loss(stock[0]), loss(owner.two_hot_cross_entropy), given, (target,))
            assert_as_good(mean(stock[1]), mean(owner.two_hot_decode), given, ())
            wanted = target.clone().requires_grad_()
            owner.two_hot_cross_entropy(given.given[0], wanted, bins).sum().backward()
            assert wanted.grad is not None, "a target that is learned keeps its gradient"
            with pytest.raises(ValueError, match="target shape"):
                owner.two_hot_cross_entropy(given.given[0], target[:3], bins)


def test_optimizer(models: ModuleType):
    training = import_module("torchrl.trainers.algorithms.dreamer_v3")

    def learn(ours: bool) -> list[Tensor]:
        stream = torch.Generator().manual_seed(0)
        params = [nn.Parameter(torch.randn(s, generator=stream)) for s in ((4, 3, 2), (5, 4), (7,), ())]
        opt = training.DreamerV3Optimizer(params, lr=1e-2, warmup_steps=4)
        for step in range(8):
            for p in params:
                p.grad = torch.randn(p.shape, generator=stream)
            if ours and step >= 2:
                with integration.install():
                    opt.step()
            else:
                opt.step()
        assert opt.param_groups[0]["step"] == 8
        return [x.detach() for p in params for x in (p, opt.state[p]["rms"], opt.state[p]["momentum"])]

    for our, their in zip(learn(True), learn(False), strict=True):
        torch.testing.assert_close(our, their, rtol=1e-5, atol=1e-6)


def adapter(job: str) -> tuple[Any, Any, Any]:
    """The module that benchmarks time, a loss of its making and a batch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PEERS))
        protocol = importlib.import_module("protocol")
        spec = util.spec_from_file_location("torchrl_adapter", PEERS / "torchrl.py")
        assert spec and spec.loader
        module = util.module_from_spec(spec)
        spec.loader.exec_module(module)
        task = protocol.Job("proprio", B, T, D, 6, K, 2, 8, stoch=S, horizon=3)
    sys.modules.pop("protocol", None)
    torch.manual_seed(0)
    from torchrl.objectives import DreamerV3Loss

    loss = DreamerV3Loss(*module.losses(task), continuation_horizon=module.HORIZON)
    torch.manual_seed(1)
    return randomized(loss), module.batch(task), module


def update(batch: Any, loss: Any) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Losses and gradients of one update."""
    torch.manual_seed(2)
    found = {key: x for key, x in loss(batch.copy()).items() if key.startswith("loss_")}
    total = sum(x.sum() for x in found.values())
    wanted = [p for p in loss.parameters() if p.requires_grad]
    grads = torch.autograd.grad(total, wanted, allow_unused=True)
    return {key: x.detach() for key, x in found.items()}, [torch.zeros(0) if x is None else x for x in grads]


def test_losses_and_gradients_of_an_update(models: ModuleType):
    """Both draw the same, so that all losses and gradients are the same up to rounding."""
    loss, batch, _ = adapter("proprio-1m-3x5")
    losses, grads = update(batch, loss)
    loss, batch, _ = adapter("proprio-1m-3x5")
    with integration.install():
        our_losses, our_grads = update(batch, loss)
    assert our_losses.keys() == losses.keys() and len(losses) > 4
    for name, x in losses.items():
        torch.testing.assert_close(
            our_losses[name], x, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert sum(bool(g.any()) for g in grads) > 20
    for i, (our, their) in enumerate(zip(our_grads, grads, strict=True)):
        assert our.shape == their.shape and (our - their).norm() <= 1e-3 * their.norm().clamp_min(1e-4), i


@pytest.mark.parametrize("reinforce", [True, False])
def test_imagination_has_a_graph_where_one_is_read(models: ModuleType, reinforce: bool):
    loss, batch, _ = adapter("proprio-1m-3x5")
    actor, seen = loss.actor_loss, []
    actor.use_reinforce = reinforce
    rollout = type(actor.model_based_env).rollout

    def watched(env: Any, *args: Any, **kwargs: Any) -> Any:
        found = rollout(env, *args, **kwargs)
        seen.append(found["next", "belief"].requires_grad)
        return found

    with pytest.MonkeyPatch.context() as patch, integration.install():
        patch.setattr(type(actor.model_based_env), "rollout", watched)
        value, _ = actor(batch.copy())
        assert value["loss_actor"].requires_grad
        value["loss_actor"].backward()
    assert seen == [not reinforce] and "rollout" not in vars(actor.model_based_env)
    assert any(p.grad is not None and p.grad.any() for p in actor.parameters())


def test_rollout_of_resets_and_of_one_step(models: ModuleType):
    from tensordict.nn import TensorDictModule

    def after(*keys: str) -> list[tuple[str, str]]:
        return [("next", key) for key in keys]

    rollout = models.RSSMRolloutV3(
        TensorDictModule(
            prior(models), ["state", "belief", "action"], after("prior_logits", "state", "belief")
        ),
        TensorDictModule(
            posterior(models), after("belief", "encoded_latents"), after("posterior_logits", "state")
        ),
    )
    assert rollout._fast_path
    stock = models.RSSMRolloutV3._loop

    def call(loop: Callable[..., Any]) -> Callable[..., Any]:
        def seeded(module: Any, *inputs: Any) -> Any:
            torch.manual_seed(3)
            return tuple(loop(module, *inputs))

        return seeded

    for length in (1, T):
        reset = torch.rand(B, length, 1) < 0.3
        start = onehots(B).requires_grad_(), wanting(B, D)
        inputs = *start, wanting(B, length, A), wanting(B, length, E), reset
        with integration.install():
            assert models.RSSMRolloutV3._loop is not stock
            assert_as_good(call(stock), call(models.RSSMRolloutV3._loop), rollout, inputs, rounds=True)


def test_autocast_and_compiled_calls_are_theirs(models: ModuleType):
    net = randomized(models.DreamerV3MLP(D, 5, depth=2, num_cells=8))
    x = torch.randn(B, D)
    with torch.autocast("cpu", torch.bfloat16):
        theirs = net(x)
        with integration.install():
            assert torch.equal(net(x), theirs)
    with integration.install():
        torch.testing.assert_close(torch.compile(net, backend="eager", fullgraph=True)(x), net(x))


def test_without_torchrl(monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "torchrl"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchrl", None)
    with pytest.raises(ImportError, match="torchrl is not found.*pip install torchrl==0.14.1"):
        integration.install()
