"""Options of `lathe serve` become replicas of Lathe's own engine that Ray Serve spreads over a machine or a cluster.

Each replica has an engine process of its own, and all wires; Ray sends each request to one that has little to do.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lathe.actions.place import named, weights_at
from lathe.errors import MissingError, UsageError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from lathe.actions.serve import Options
    from lathe.server.gate import Rules
    from lathe.server.room import Loaded


def run(options: Options, let_in: Rules, load: Callable[[Path], Loaded]) -> int:
    """Serve until Ctrl-C. A cluster that RAY_ADDRESS names is joined; else this machine is one for as long.

    let_in: who may come. load: what an engine process calls to load a model from its place.
    Raises MissingError where there is no Ray, UsageError for what replicas cannot do.
    """
    if find_spec("ray") is None:
        raise MissingError("ray is not installed.", "", 'pip install "lathe-llm[ray]"')
    if options.also or options.adapter_dir:
        found = "--also and --adapter-dir are for one process of Lathe's own."
        raise UsageError(found, "All replicas answer the same.", "Leave them out.")
    import ray
    from ray import serve

    try:
        if "RAY_ADDRESS" in os.environ:
            ray.init(logging_level="warning")
        else:
            ray.init(logging_level="warning", include_dashboard=False)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # after Ray has put its own handler there
        serve.start(http_options={"host": options.host, "port": options.port})
        serve.run(application(options, let_in, load), name="lathe")
        where = f"http://{options.host}:{options.port}"
        print(f"Serving {options.replicas} replicas of {options.model} at {where}", file=sys.stderr, flush=True)
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        return 0
    finally:
        serve.shutdown()
        ray.shutdown()


def application(options: Options, let_in: Rules, load: Callable[[Path], Loaded]) -> Any:
    """What `ray.serve.run` takes."""
    from ray import serve

    place = weights_at(options.model, options.checkpoints)
    name = options.served_model_name or named(options.model)

    def built() -> FastAPI:
        return replica(options, name, let_in, partial(load, place.resolve()))

    cards = {"num_cpus": 0, "num_gpus": int(options.device != "cpu")}  # an engine shares the cores with its neighbours
    made = serve.deployment(serve.ingress(built)(Replica))
    room = options.max_seqs + options.max_queue
    return made.options(
        name="lathe", num_replicas=options.replicas, max_ongoing_requests=room, ray_actor_options=cards
    ).bind()


class Replica:
    """Nothing but its routes, which Ray puts on it."""


def replica(options: Options, name: str, let_in: Rules, load: Callable[[], Loaded]) -> FastAPI:
    """In a replica: all routes over an engine process that is begun here. It is ready when its model is."""
    from lathe.server.app import application, wires
    from lathe.server.desk import Desk
    from lathe.server.line import Line

    desk = Desk(
        {name: Line.begin(load)}, options.max_queue, options.strict, options.any_model_name, options.adapter_dir
    )
    app = application(desk, wires(options.api_path, options.stream, options.kept_responses), let_in)
    opened = app.router.lifespan_context

    @asynccontextmanager
    async def loaded(app: FastAPI) -> AsyncIterator[None]:
        async with opened(app):
            await desk.loaded()
            yield

    app.router.lifespan_context = loaded
    return app
