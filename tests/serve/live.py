"""A server in a thread of this process, as clients meet it."""

import asyncio
import logging
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import httpx
import openai
import uvicorn
from tokenizers import decoders

from alignvec import AlignmentVector, KnobModel
from alignvec.serve.address import bound, url_of
from alignvec.serve.app import Door, application
from alignvec.serve.dial import Dial
from alignvec.serve.endpoints import Limits
from alignvec.serve.engine import Engine
from alignvec.serve.profiles import Profiles
from alignvec.serve.security import Access

QUESTION = "how long does tea steep?"
ASK = [{"role": "user", "content": QUESTION}]


class Live:
    """Where a server is, and what stands behind it."""

    def __init__(self, url, app, engine, door):
        self.url, self.app, self.engine, self.access = url, app, engine, door.access
        self.http = httpx.Client(base_url=url, timeout=30)

    def client(self, key="none", **options):
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, **options)

    def post(self, path="/v1/chat/completions", body=None, **options):
        return self.http.post(path, json=body, **options)

    def quiet(self, seconds=5.0):
        """Wait until nothing runs; whether that came about."""
        end = time.monotonic() + seconds
        steps = None
        while steps != self.engine.steps or self.engine.running or self.engine.waiting:
            if time.monotonic() > end:
                return False
            steps = self.engine.steps
            time.sleep(0.05)
        return True


@contextmanager
def live(model, folder, rows=(8, 32), keys=None, default=None, **options):
    """Serve a KnobModel as `tea`; `options` are those of `Door`, `Limits` and `application`."""
    root = logging.getLogger()  # where a command that ran in this process may have left its own
    root.handlers[:] = [
        one for one in root.handlers if not getattr(getattr(one, "stream", None), "closed", False)
    ]
    engine = Engine(model, *rows)
    profiles = Profiles(folder / "state.sqlite")
    door = Door(Access(keys), **{k: options.pop(k) for k in ("local", "origins") if k in options})
    limits = Limits(**{k: options.pop(k) for k in ("body", "seconds", "tokens") if k in options})
    dial = Dial("tea", model.vectors, profiles, default or {})
    app = application(engine, dial, profiles, door, limits, **options)
    config = uvicorn.Config(app, log_config=None, log_level="warning", ws="none")
    config.timeout_graceful_shutdown = 2
    server = uvicorn.Server(config)
    with bound("127.0.0.1", 0) as found:
        thread = threading.Thread(
            target=lambda: asyncio.run(server.serve(sockets=[found])), daemon=True
        )
        url = url_of(found)
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.005)
        here = Live(url, app, engine, door)
        try:
            yield here
        finally:
            here.http.close()
            server.should_exit = True
            thread.join(20)
    assert not thread.is_alive(), "the server does not end"


def tea_model(base, aligned):
    """A base with one knob, `tea`, whose levels are plain=-1 and fine=1."""
    known = {"levels": {"plain": -1.0, "fine": 1.0}, "safe": [-1.5, 1.5]}
    vector = replace(AlignmentVector.extract(base, aligned), calibration=known)
    model = KnobModel.from_pretrained(base, {"tea": vector}, dtype="float32", mode="gate")
    model.tokenizer.backend_tokenizer.decoder = decoders.Fuse()  # no spaces between letters
    return model
