"""The authors' controllers and dreams, with the sizes of the paper."""

from typing import Any

import numpy as np
from tensorflow1 import Recorded, Variables
from world_models_draws import pictures, spread, weights

Arrays = dict[str, np.ndarray]
STEPS, DREAMS = 3, 3
# Sharp mixtures of normals that are apart, and of moderate width.
GAINS = {"RNN/output_w": 2.0, "RNN/output_b": 5.0}
MARGIN = 1e-5  # of a uniform number from where another component would be chosen


def control_car(agent: Any) -> tuple[Arrays, dict[str, Any]]:
    """V, M and C in the environment, picture by picture: latents, actions, and M's state."""
    nets = Variables(agent.vae), Variables(agent.rnn)
    shapes = {name: shape for net in nets for name, shape in net.shapes.items()}
    for net in nets:
        net.write(weights("car", net.shapes, GAINS))
    controls = 0.1 * spread("car/controls", agent.param_count)
    agent.set_model_params(controls)
    images = pictures("car/seen", STEPS)
    np.random.seed(1)
    noise = np.random.randn(STEPS, agent.z_size)
    np.random.seed(1)
    agent.reset()
    steps = []
    for image in images:
        z, mu, logvar = agent.encode_obs(image)
        action = agent.get_action(z)
        steps.append(
            dict(z=z, mu=mu, logvar=logvar, action=action, cell=agent.state.c[0], hidden=agent.state.h[0])
        )
    arrays = {"control/in/image": images, "control/in/noise": noise, "controls": controls}
    arrays |= {f"control/out/{key}": np.stack([s[key] for s in steps]) for key in steps[0]}
    return arrays, dict(net="car", gains=GAINS, shapes=shapes)


def dream_car(make: Any, agent: Any) -> Arrays:
    """Steps of M alone, with given actions."""
    env, steps = make(agent), []
    agent.reset()
    env.np_random, agent.rnn.sess = Recorded(2), Watched(agent.rnn.sess)
    env.z = spread("car/start", env.z_size).astype(np.float64)
    actions = spread("car/actions", STEPS, 3) / np.float32(3**0.5)
    start = env.z
    for action in actions:
        z, _, _, _ = env.step(action)
        check(agent.rnn.sess.computed[-1][0], env.np_random.uniform_given[-env.z_size :], env.temperature)
        steps.append(dict(z=z, cell=agent.state.c[0], hidden=agent.state.h[0]))
    arrays = {
        "dream/in/start": start,
        "dream/in/action": actions,
        "dream/in/temperature": np.array(env.temperature),
    }
    arrays |= draws(env.np_random, STEPS)
    return arrays | {f"dream/out/{key}": np.stack([s[key] for s in steps]) for key in steps[0]}


def draws(generator: Recorded, steps: int) -> Arrays:
    """What was drawn in as many steps: a uniform number for each latent dimension, then a normal one."""
    uniform = np.array(generator.uniform_given).reshape(steps, -1)
    return {"dream/in/uniform": uniform, "dream/in/normal": np.array(generator.normal_given)}


class Watched:
    """A session that remembers what it computed."""

    def __init__(self, session: Any) -> None:
        self.session, self.computed = session, []

    def run(self, *args: Any) -> Any:
        self.computed.append(self.session.run(*args))
        return self.computed[-1]


def dream_doom(env: Any, controller: Any) -> tuple[Arrays, dict[str, Any]]:
    """Dreams in which the controller acts, at the temperature of the repository and at a low one."""
    net = Variables(env.rnn)
    net.write(weights("doom", net.shapes, GAINS))
    controls = 0.1 * spread("doom/controls", controller.param_count)
    controller.set_model_params(controls)
    env.rnn.sess = Watched(env.rnn.sess)
    count = 4
    start = {key: spread(f"doom/start/{key}", count, env.outwidth) for key in ("mu", "logvar")}
    env.initial_mu_logvar = [tuple(10_000.0 * x for x in row) for row in zip(*start.values(), strict=True)]
    env.reset()
    arrays: Arrays = {"controls": controls}
    for name, temperature in (("dream", env.temperature), ("cool", 0.3)):
        dreams = [dream(env, controller, seed, temperature) for seed in range(DREAMS)]
        found = {f"{name}/{key}": np.stack([d[key] for d in dreams]) for key in dreams[0]}
        chosen = found[f"{name}/in/start_of"]
        found |= {f"{name}/in/{key}": x[chosen] for key, x in start.items()}
        ends = found[f"{name}/out/end"]
        assert (ends > 0).any() and (ends < 0).any() and np.abs(ends).min() > 1e-3, ends
        arrays |= found | {f"{name}/in/temperature": np.array(temperature)}
    return arrays, dict(net="doom", gains=GAINS, shapes=net.shapes)


def dream(env: Any, controller: Any, seed: int, temperature: float) -> Arrays:
    """One dream, and where in `initial_mu_logvar` it starts. It is not left when it ends, as another would start."""
    env.np_random = Recorded(seed)
    seen, session = env.reset(), env.rnn.sess
    env.temperature = temperature
    first = np.random.RandomState(seed).randint(0, len(env.initial_mu_logvar))
    (noise,), env.np_random.normal_given = env.np_random.normal_given, []
    steps, start = [], env.z
    for _ in range(STEPS):
        action = controller.get_action(seen)
        seen, _, done, _ = env.step(action)
        logmix, _, _, end, _ = session.computed[-1]
        assert done == (end[0] > 0), (done, end)
        check(logmix, env.np_random.uniform_given[-env.outwidth :], temperature)
        state = dict(cell=env.rnn_state.c[0], hidden=env.rnn_state.h[0])
        steps.append(dict(z=env.z, action=action, end=end[0], done=done, **state))
        env.restart = 0
    given = draws(env.np_random, STEPS)
    found = {key.removeprefix("dream/"): x for key, x in given.items()} | {
        "in/noise": noise,
        "in/start_of": first,
    }
    return found | {"out/start": start} | {f"out/{k}": np.stack([s[k] for s in steps]) for k in steps[0]}


def check(logmix: np.ndarray, uniform: list[float], temperature: float) -> None:
    """No rounding may choose another component."""
    x = np.exp((logmix - logmix.max(1, keepdims=True)).astype(float) / temperature)
    sums = (x / x.sum(1, keepdims=True)).cumsum(1)
    gap = np.abs(sums - np.array(uniform)[:, None]).min()
    assert gap > MARGIN, f"a uniform number is {gap:.1g} from another component"


def control_doom(controller: Any) -> Arrays:
    """Actions of what a controller sees: z, cell and hidden."""
    seen = spread("doom/seen", 5, controller.input_size)
    return {"control/in/seen": seen, "control/out/action": np.stack([controller.get_action(x) for x in seen])}
