"""Runs the authors' World Models and writes what it computes, for tests/test_golden_world_models.py to recompute.

git clone https://github.com/hardmaru/WorldModelsExperiments CLONE && git -C CLONE checkout fd982b9
pip install tensorflow-cpu==2.15.1 numpy==1.26.4
python make.py --source CLONE
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ |= {"TF_ENABLE_ONEDNN_OPTS": "0", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
sys.path.append(str(Path(__file__).parents[2]))

import numpy as np
from acting import control_car, control_doom, dream_car, dream_doom
from tensorflow1 import Variables, expression, load, official, pieces, versions
from world_models_draws import keep, pictures, spread, uniform, weights

HERE = Path(__file__).parent
PICTURES, VISION_STEPS, STEPS = 3, 2, 3
ROWS, TIME, LATENTS, ACTIONS, UNITS = 4, 7, 6, 3, 12  # of the small memories
LATE = 30_000  # the update at which the learning rate is looked at: it has come down by a quarter

Arrays = dict[str, np.ndarray]


def vision(conv_vae: Any, net: str, latents: int) -> tuple[Arrays, dict[str, Any]]:
    """V: what it computes of some pictures, its losses and their gradient, and updates."""
    vae = conv_vae(z_size=latents, batch_size=PICTURES, is_training=True, reuse=False, gpu_mode=False)
    variables = Variables(vae)
    # KLs on either side of what is free, and pictures that are not grey.
    gains = {"enc_fc_mu/kernel": 7.5, "enc_fc_log_var/kernel": 4.0, "dec_fc/kernel": 2.0}
    gains |= {f"dec_deconv{number}/kernel": 1.7 for number in (1, 2, 3, 4)}
    variables.write(weights(net, variables.shapes, gains))
    image, noise = pictures(f"{net}/image", PICTURES), spread(f"{net}/noise", PICTURES, latents)
    feed = {vae.x: image.astype(float) / 255.0, vae.epsilon: noise}
    grads, _ = variables.gradients(vae.loss)
    out = dict(mu=vae.mu, logvar=vae.logvar, z=vae.z, y=vae.y)
    loss = dict(loss=vae.loss, r_loss=vae.r_loss, kl_loss=vae.kl_loss)
    outs, losses, computed = vae.sess.run([out, loss, grads], feed)
    arrays = {"in/image": image, "in/noise": noise}
    arrays |= {f"out/{k}": v for k, v in outs.items()} | {f"loss/{k}": v for k, v in losses.items()}
    arrays |= {f"grad/{k}": v for k, v in keep(computed).items()}
    before = variables.read()
    for step in range(VISION_STEPS):
        arrays[f"step{step}/loss"], _ = vae.sess.run([vae.loss, vae.train_op], feed)
    change = {key: value - before[key] for key, value in variables.read().items()}
    arrays |= {f"change/{k}": v for k, v in keep(change).items()}
    free = latents * vae.kl_tolerance
    mu, logvar = outs["mu"].astype(float), outs["logvar"].astype(float)
    kl = -0.5 * (1 + logvar - mu**2 - np.exp(logvar)).sum(1)
    assert kl.min() < free < kl.max(), f"no picture on either side of {free} nats: {kl}"
    config = dict(net=net, latents=latents, gains=gains, shapes=variables.shapes, updates=VISION_STEPS)
    return arrays, config | dict(learning_rate=vae.learning_rate, kl_tolerance=vae.kl_tolerance)


class Memory:
    """M of one of the experiments, with small sizes: what is fed to it, and what it gives."""

    def __init__(self, make: Any, hps: Any, net: str, restarts: bool) -> None:
        self.net, self.hps, self.restarts = net, hps, restarts
        self.model = make(hps, gpu_mode=False)
        self.variables = Variables(self.model)
        # Large errors, so that some gradients are above what they are clipped at.
        self.gains = {"RNN/output_w": 2.0, "RNN/output_b": 15.0}
        self.variables.write(weights(net, self.variables.shapes, self.gains))

    def feed(self, data: Arrays) -> dict[Any, Any]:
        """Of z [B, T + 1, Z] and the rest of what `data` draws."""
        model, state = self.model, self.model.initial_state
        fed = {state[0]: data["cell"], state[1]: data["hidden"]}
        if self.restarts:
            fed |= {model.batch_z: data["z"], model.batch_restart: data["restart"]}
            return fed | {model.batch_action: data["action"][..., 0]}
        x = np.concatenate([data["z"], data["action"]], 2)[:, :-1]
        return fed | {model.input_x: x, model.output_x: data["z"][:, 1:]}

    def outputs(self) -> dict[str, Any]:
        model = self.model
        out = dict(logmix=model.out_logmix, mean=model.out_mean, logstd=model.out_logstd, loss=model.cost)
        out |= dict(cell=model.final_state[0], hidden=model.final_state[1])
        if self.restarts:
            out |= dict(restart_logit=model.out_restart_logits, z_loss=model.z_cost, r_loss=model.r_cost)
        return out

    def data(self, name: str, time: int, size: float) -> Arrays:
        """z of a size, and the rest; in float16, as encoded pictures are kept."""
        name = f"{self.net}/{name}"
        z = (size * spread(f"{name}/z", ROWS, time + 1, LATENTS)).astype(np.float16).astype(np.float32)
        actions = 1 if self.restarts else ACTIONS
        drawn = dict(z=z, action=0.5 * spread(f"{name}/action", ROWS, time + 1, actions))
        drawn |= {key: 0.5 * spread(f"{name}/{key}", ROWS, UNITS) for key in ("cell", "hidden")}
        if self.restarts:
            drawn["restart"] = (uniform(f"{name}/restart", ROWS, time + 1) < 0.3).astype(np.float32)
        return drawn

    def forward(self) -> Arrays:
        """Outputs, losses, and the gradient of the loss by parameters and, where nothing resets it, by the state.

        Doom's memory starts from zero: what is fed in the place of that state is what it returns to at a restart,
        as one tensor is both. `fed` is what comes of it.
        """
        data, state, zero = self.data("forward", TIME, 1.5), self.model.initial_state, {}
        if self.restarts:
            zero = {key: np.zeros_like(data[key]) for key in ("cell", "hidden")}
        grads, (cell, hidden) = self.variables.gradients(self.model.cost, state[0], state[1])
        grads |= {} if self.restarts else {"cell": cell, "hidden": hidden}
        outs, computed = self.model.sess.run((self.outputs(), grads), self.feed(data | zero))
        arrays = {f"in/{k}": v for k, v in (data | zero).items()} | {f"out/{k}": v for k, v in outs.items()}
        if self.restarts:
            fed = self.model.sess.run(self.outputs(), self.feed(data))
            arrays |= {f"fed/{end}/{k}": x[k] for k in zero for end, x in (("in", data), ("out", fed))}
        return arrays | {f"grad/{k}": v for k, v in computed.items()}

    def train(self, rate: Any) -> Arrays:
        """Updates from a late one on: of consecutive parts with Doom's memory, of the same part with the other."""
        model, data = self.model, self.data("train", TIME * (STEPS if self.restarts else 1), 8.0)
        arrays = {f"train/in/{k}": v for k, v in data.items() if k not in ("cell", "hidden")}
        if self.restarts:
            data["restart"][:] = arrays["train/in/restart"][:] = 0
            data["restart"][:, 0] = arrays["train/in/restart"][:, 0] = 1
        data |= {key: np.zeros((ROWS, UNITS), np.float32) for key in ("cell", "hidden")}
        grads, _ = self.variables.gradients(model.cost)
        model.global_step.load(LATE, model.sess)
        for number in range(STEPS):
            begin = number * TIME if self.restarts else 0
            part = {
                k: v[:, begin : begin + TIME + 1] for k, v in data.items() if v.ndim > 2 or k == "restart"
            }
            step = model.sess.run(model.global_step)
            fed = self.feed(data | part) | {model.lr: rate(hps=self.hps, step=step)}
            before = model.sess.run(grads, fed)
            loss, state, _ = model.sess.run([model.cost, model.final_state, model.train_op], fed)
            if self.restarts:
                data |= {"cell": state.c, "hidden": state.h}
            arrays |= {f"train/{number}/grad/{k}": v for k, v in before.items()}
            arrays |= {f"train/{number}/param/{k}": v for k, v in self.variables.read().items()}
            arrays |= {f"train/{number}/loss": loss, f"train/{number}/rate": rate(hps=self.hps, step=step)}
            clipped = np.concatenate([np.abs(g.ravel()) > self.hps.grad_clip for g in before.values()])
            assert 0 < clipped.mean() < 0.5, f"{clipped.mean():.1%} of the gradients are clipped"
        return arrays


def memory(make: Any, script: Path, hyper: Any, net: str, restarts: bool) -> tuple[Arrays, dict[str, Any]]:
    """M: outputs, gradients, updates, and the learning rate that the training script gives."""
    hps = pieces(script, "default_hps", **hyper)["default_hps"]()
    sizes = dict(rnn_size=UNITS, batch_size=ROWS)
    if restarts:
        sizes |= dict(seq_width=LATENTS, max_seq_len=TIME + 1)
    else:
        sizes |= dict(input_seq_width=LATENTS + ACTIONS, output_seq_width=LATENTS, max_seq_len=TIME)
    small = Memory(make, hps._replace(**sizes), net, restarts)
    rate = expression(script, "curr_learning_rate")
    arrays = small.forward() | small.train(rate)
    steps = np.array([0, 1, 100, LATE, 1_000_000])
    arrays |= {"rate/step": steps, "rate/lr": np.array([rate(hps=hps, step=int(s)) for s in steps])}
    config = dict(net=net, latents=LATENTS, units=UNITS, late=LATE, updates=STEPS, hps=hps._asdict())
    return arrays, config | dict(gains=small.gains, shapes=small.variables.shapes)


def drawn(script: Path, car: bool) -> Arrays:
    """z as the training scripts draw it from float16, and the normal numbers that they draw it with."""
    mu, logvar = (spread(f"drawn/{key}", 1, 5, 4).astype(np.float16) for key in ("mu", "logvar"))
    given = dict(data_mu=mu, data_logvar=logvar, data_action=np.zeros((1, 5, 3)), N_data=1, batch_size=1)
    np.random.seed(0)
    if car:
        z, _ = pieces(script, "random_batch", **given)["random_batch"]()
        np.random.seed(0)
        np.random.permutation(1)
    else:
        fed = mu[None], logvar[None], given["data_action"][None], given["data_action"][None]
        z, _, _ = pieces(script, "get_batch")["get_batch"](0, *fed)
        np.random.seed(0)
    return {"in/mu": mu, "in/logvar": logvar, "in/noise": np.random.randn(*mu.shape), "out/z": z}


def initial(*nets: Any) -> dict[str, float]:
    """How far from zero the authors' code may initialise each variable: 0, or the limit of a uniform distribution."""
    limits = {}
    for net in nets:
        for name in Variables(net).by_name:
            found = {op.name for op in net.g.get_operations() if op.name.startswith(f"{name}/Initializer/")}
            if f"{name}/Initializer/zeros" in found:
                limits[name] = 0.0
                continue
            low, high = (f"{name}/Initializer/random_uniform/{end}:0" for end in ("min", "max"))
            low, limits[name] = map(float, net.sess.run([low, high]))
            assert low == -limits[name] < 0
    return limits


def save(name: str, arrays: Arrays, config: dict[str, Any]) -> None:
    """Floats in float32; float64 only where it was so."""
    np.savez_compressed(HERE / f"{name}.npz", config_json=np.array(json.dumps(config)), **arrays)
    print(f"{name}.npz: {len(arrays)} arrays, {(HERE / f'{name}.npz').stat().st_size:,} bytes")


def car(folder: Path, shared: dict[str, Any]) -> None:
    """CarRacing."""
    with official(folder):
        rnn, vae = load("rnn.rnn"), load("vae.vae")
        script = folder / "rnn_train.py"
        save("vision_car", *with_(shared, vision(vae.ConvVAE, "car", 32)))
        hyper = {"HyperParams": rnn.HyperParams}
        arrays, config = memory(rnn.MDNRNN, script, hyper, "car_small", restarts=False)
        arrays |= {f"drawn/{k}": v for k, v in drawn(script, car=True).items()}
        constants = "z_size", "batch_size", "learning_rate", "kl_tolerance", "NUM_EPOCH"
        config["vae_train"] = pieces(folder / "vae_train.py", *constants)
        save("memory_car", *with_(shared, (arrays, config)))
        agent = load("model").make_model(load_model=False)
        config = {"initial": initial(agent.vae, agent.rnn)}
        acted, settings = control_car(agent)
        dreamt = dream_car(load("dream_env").CarRacingDream, agent)
        save("acting_car", *with_(shared, (acted | dreamt, settings | config)))


def doom(folder: Path, shared: dict[str, Any]) -> None:
    """DoomTakeCover."""
    with official(folder):
        doomrnn = load("doomrnn")
        script = folder / "rnn_train.py"
        save("vision_doom", *with_(shared, vision(doomrnn.ConvVAE, "doom", 64)))
        given = {name: getattr(doomrnn, name) for name in vars(doomrnn) if name.startswith("model_")}
        given["HyperParams"] = doomrnn.HyperParams
        arrays, config = memory(doomrnn.Model, script, given, "doom_small", restarts=True)
        arrays |= {f"drawn/{k}": v for k, v in drawn(script, car=False).items()}
        constants = "z_size", "batch_size", "learning_rate", "kl_tolerance", "NUM_EPOCH"
        config["vae_train"] = pieces(folder / "vae_train.py", *constants)
        save("memory_doom", *with_(shared, (arrays, config)))
        env = doomrnn.DoomCoverRNNEnv(load_model=False)
        config = {"initial": initial(env.vae, env.rnn)}
        controller = load("model").make_model(load("config").games["doomrnn"])
        dreamt, settings = dream_doom(env, controller)
        save("acting_doom", *with_(shared, (dreamt | control_doom(controller), settings | config)))


def with_(shared: dict[str, Any], made: tuple[Arrays, dict[str, Any]]) -> tuple[Arrays, dict[str, Any]]:
    return made[0], {**shared, **made[1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="the authors' repository")
    source = parser.parse_args().source.resolve()
    commit = subprocess.run(
        ["git", "-C", source, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    shared = {"commit": commit, **versions()}
    car(source / "carracing", shared)
    doom(source / "doomrnn", shared)


if __name__ == "__main__":
    main()
