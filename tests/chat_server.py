"""A server in this process that plays a chat endpoint, as a test tells it to."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TEXT = "Tea is ready after three minutes."


def chat(text=TEXT, finish="stop", usage=(9, 9), **message):
    """A body as OpenAI words it."""
    content = {"role": "assistant", "content": text, **message}
    body = {"id": "c", "object": "chat.completion", "created": 1, "model": "m",
            "choices": [{"index": 0, "finish_reason": finish, "message": content}]}  # fmt: skip
    if usage:
        body["usage"] = dict(zip(("prompt_tokens", "completion_tokens"), usage, strict=True))
    return body


@contextmanager
def serving(answer, headers_of_last=None):
    """A server that answers `answer(body, n)`: (status, JSON or bytes), with or without headers.

    The headers of the last request, and its path, go into `headers_of_last`.
    """
    seen, one_at_a_time = [], threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            if headers_of_last is not None:
                given = {name.lower(): value for name, value in self.headers.items()}
                headers_of_last.update(given, path=self.path)
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with one_at_a_time:
                seen.append(body)
                number = len(seen)
            status, content, *headers = answer(body, number)
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            given = {"Content-Type": "application/json", "Content-Length": str(len(data))}
            for name, value in (given | dict(*headers)).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", seen
    finally:
        server.shutdown()
        server.server_close()
