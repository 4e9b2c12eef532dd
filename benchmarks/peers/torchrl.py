"""TorchRL (github.com/pytorch/rl) 0.14.1: its public DreamerV3 classes, put together as its own example does.

    python -m venv DIR && DIR/bin/pip install torchrl==0.14.1

DIR is that environment. The core is the block GRU, the actor learns by REINFORCE, the rollout runs on tensors (the fast
path of RSSMRolloutV3), and DreamerV3OptimizationStepper does what is its default: eager steps on a CPU, on a GPU
compiled ones in a CUDA graph, there with bfloat16 in matrix products.

With sensors the networks are fastdream's, with as many parameters. The update differs where the peer's code does: the
observe scan also samples the prior, imagination keeps a gradient that is never used, and actor and critic are evaluated
once more on the imagined states. There are no jobs with images: its convolutions have strides, fastdream's have none.
"""

import sys
from pathlib import Path
from typing import Any

from protocol import Job, Peer, serve, set_up_torch, waited

SITE = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
REMEDY = "python -m venv DIR && DIR/bin/pip install torchrl==0.14.1"
HORIZON, BINS, UNIMIX = 333, 255, 0.01


def build(path: Path, job: Job, threads: int, device: str) -> Peer:
    """The loss, the optimiser and the stepper that the peer's trainer would call, with one batch."""
    sys.path.insert(0, str(path / SITE))
    set_up_torch(threads, device)
    import torchrl
    from torchrl.objectives import DreamerV3Loss, SoftUpdate
    from torchrl.trainers.algorithms import DreamerV3OptimizationStepper, DreamerV3Optimizer

    loss = DreamerV3Loss(*losses(job), continuation_horizon=HORIZON).to(device)
    target = SoftUpdate(loss.value_loss, tau=0.02)
    params = [p for p in loss.parameters() if p.requires_grad]
    stepper = DreamerV3OptimizationStepper(
        loss, DreamerV3Optimizer(params), target, mixed_precision=device == "cuda"
    )
    data = batch(job).to(device)
    if device == "cuda":
        stepper.warmup(data.copy())
    return Peer(
        update=waited(lambda: stepper.step(None, data.copy()), device),
        parameters=sum(p.numel() for p in params),
        version=torchrl.__version__,
    )


def losses(job: Job) -> tuple[Any, Any, Any]:
    """The losses of the world model, the actor and the critic; they share the networks."""
    from tensordict.nn import TensorDictModule, TensorDictSequential
    from torch.nn import Sigmoid
    from torchrl.data import Composite, Unbounded
    from torchrl.envs.model_based.dreamer import DreamerEnv
    from torchrl.modules import DreamerV3MLP, RSSMPosteriorV3, RSSMPriorV3, RSSMRolloutV3, SymExpTwoHot
    from torchrl.modules import WorldModelWrapper as Wrapper
    from torchrl.objectives import DreamerV3ActorLoss, DreamerV3ModelLoss, DreamerV3ValueLoss, symexp, symlog
    from torchrl.objectives.utils import ValueEstimators

    stoch, (sensors,) = job.stoch * job.classes, job.observation
    widths = {"hidden_dim": job.hidden, "rnn_hidden_dim": job.deter, "unimix": UNIMIX}
    latent = {"num_categoricals": job.stoch, "num_classes": job.classes}

    def mlp(inputs: int, outputs: int | None, depth: int, outscale: float = 1.0) -> DreamerV3MLP:
        return DreamerV3MLP(inputs, outputs, depth, job.units, outscale)

    def after(*keys: str) -> list[tuple[str, str]]:
        return [("next", key) for key in keys]

    def chain(*steps: tuple[Any, list, list]) -> TensorDictSequential:
        return TensorDictSequential(*(TensorDictModule(f, in_keys=i, out_keys=o) for f, i, o in steps))

    prior = RSSMPriorV3(
        action_shape=(job.action,), action_dim=job.action, recurrent_model="block_gru", **widths, **latent
    )
    post = RSSMPosteriorV3(obs_embed_dim=job.units, use_rms_norm=True, **widths, **latent)
    rollout = RSSMRolloutV3(
        TensorDictModule(prior, ["state", "belief", "action"], after("prior_logits", "state", "belief")),
        TensorDictModule(post, after("belief", "encoded_latents"), after("posterior_logits", "state")),
    )
    encoder, decoder = mlp(sensors, None, 3), mlp(stoch + job.deter, sensors, 3)
    reward, cont = mlp(stoch + job.deter, BINS, 1, 0.0), mlp(stoch + job.deter, 1, 1)
    critic, twohot = mlp(stoch + job.deter, BINS, 3, 0.0), SymExpTwoHot(BINS)

    feat, state = after("belief", "state"), ["belief", "state"]
    world = TensorDictSequential(
        *chain(
            (symlog, after("sensors"), after("symlog")), (encoder, after("symlog"), after("encoded_latents"))
        ),
        rollout,
        *chain(
            (decoder, feat, after("reco_symlog")),
            (symexp, after("reco_symlog"), after("reco_pixels")),
            (reward, feat, after("reward_logits")),
            (twohot, after("reward_logits"), after("reward")),
            (cont, feat, after("continue_pred")),
        ),
    )
    env = DreamerEnv(
        Wrapper(
            chain((prior, ["state", "belief", "action"], ["_", "state", "belief"])),
            chain((reward, state, ["reward_logits"]), (twohot, ["reward_logits"], ["reward"])),
        ),
        prior_shape=(stoch,),
        belief_shape=(job.deter,),
    )
    env.observation_spec = Composite(state=Unbounded(stoch), belief=Unbounded(job.deter))
    env.state_spec = env.observation_spec.clone()
    env.action_spec, env.reward_spec = Unbounded(job.action), Unbounded(1)

    model = DreamerV3ModelLoss(
        world,
        kl_mode="separate",
        unimix=UNIMIX,
        lambda_continue=1.0,
        continue_target_scale=1 - 1 / HORIZON,
        detach_output=False,
    )
    model.set_keys(pixels="sensors")
    value = chain((critic, state, ["state_value_logits"]), (twohot, ["state_value_logits"], ["state_value"]))
    actor = DreamerV3ActorLoss(
        policy(mlp(stoch + job.deter, 2 * job.action, 3, 0.01)),
        value,
        env,
        continuation_model=chain((cont, state, ["logit"]), (Sigmoid(), ["logit"], ["continuation"])),
        imagination_horizon=job.horizon,
        use_reinforce=True,
    )
    actor.make_value_estimator(ValueEstimators.TDLambda, gamma=1.0, lmbda=0.95)
    return (
        model,
        actor,
        DreamerV3ValueLoss(value, "two_hot", actor_loss=actor, slow_critic_regularization=1.0),
    )


def policy(net: Any) -> Any:
    """A normal distribution with its mean in -1..1 and its deviation in 0.1..1."""
    from tensordict.nn import (
        ProbabilisticTensorDictModule,
        ProbabilisticTensorDictSequential,
        TensorDictModule,
    )
    from torchrl.modules import IndependentNormal

    def bounds(params: Any) -> tuple[Any, Any]:
        mean, std = params.chunk(2, -1)
        return mean.tanh(), 0.9 * (std + 2).sigmoid() + 0.1

    return ProbabilisticTensorDictSequential(
        TensorDictModule(net, ["belief", "state"], ["params"]),
        TensorDictModule(bounds, ["params"], ["loc", "scale"]),
        ProbabilisticTensorDictModule(
            ["loc", "scale"], ["action"], distribution_class=IndependentNormal, return_log_prob=True
        ),
    )


def batch(job: Job) -> Any:
    """What the peer's replay would give: sequences, with the latents before their first step."""
    import torch
    from tensordict import TensorDict

    lead = (job.batch, job.length)
    classes = torch.randint(job.classes, (*lead, job.stoch))
    stoch = torch.nn.functional.one_hot(classes, job.classes).flatten(-2).float()
    ends = torch.rand(3, *lead, 1) < 0.02
    after = {"sensors": torch.randn(*lead, *job.observation), "reward": torch.randn(*lead, 1)}
    return TensorDict(
        {
            "state": stoch,
            "belief": torch.rand(*lead, job.deter) * 2 - 1,
            "action": torch.randn(*lead, job.action),
            "is_init": ends[0],
            "next": after | {"done": ends[1], "terminated": ends[2]},
        },
        lead,
    )


if __name__ == "__main__":
    serve("torchrl", f"{SITE}/torchrl", REMEDY, build, kinds=("proprio",), source=SITE)
