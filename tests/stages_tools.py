"""What the tests of stages share: small settings, and sessions that are stopped somewhere."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastdream import presets, train
from fastdream.config import Config
from fastdream.driver import Voice
from fastdream.schedule import Stop
from fastdream.stages.command import assemble, with_steps
from fastdream.stages.session import Session

from .run_tools import CPU


def tiny(**control: Any) -> Config:
    config = presets.resolve("dummy_image", agent="world_models")
    dreamer = replace(config.dreamer, control=replace(config.dreamer.control, **control))
    log = replace(config.log, outputs=(), every=1e9, save_every=1e9)
    return replace(config, dreamer=dreamer, log=log, env=replace(config.env, parallel="no"))


class StopIn(Stop):
    """Becomes true when so much of a stage is done."""

    def __init__(self, stage: str, done: int) -> None:
        super().__init__()
        self.place, self.session = (stage, done), None

    def __bool__(self) -> bool:
        assert self.session is not None, "asked before the session was there"
        session: Session = self.session
        if session.names[session.at] == self.place[0] and session.stage.done >= self.place[1]:
            self.reason = "test"
        return bool(self.reason)


def opened(config: Config, logdir: Path, use: Callable[[Session], Any]) -> Any:
    """What `use` returns of a session in that folder."""
    driver = train.make_driver(config, Voice())
    with driver:
        agent = train.make_agent(config, driver.obs_space, driver.act_space, CPU)
        config = with_steps(config, driver)
        parts, models, recording = assemble(config, driver, agent, CPU, logdir)
        try:
            return use(Session(config, parts, models, recording))
        finally:
            parts.logger.close()


def run(config: Config, logdir: Path, stop: Stop | None = None) -> tuple[bool, dict[str, Any]]:
    """Whether it was done, and the agent's state."""

    def use(session: Session) -> tuple[bool, dict[str, Any]]:
        if isinstance(stop, StopIn):
            stop.session = session
        done = session.run(Stop() if stop is None else stop)
        return done, session.agent.state_dict()

    return opened(config, logdir, use)
