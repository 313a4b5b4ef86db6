"""OpenAI's own client against a server on a tiny model."""

import openai
import pytest
from live import live, tea_model

ASK = [{"role": "user", "content": "how long does tea steep?"}]


@pytest.fixture(scope="module")
def model(tiny, nudged):
    return tea_model(tiny(), nudged())


@pytest.fixture(scope="module")
def served(model, tmp_path_factory):
    with live(model, tmp_path_factory.mktemp("serve"), tokens=64) as here:
        yield here


@pytest.fixture(scope="module")
def client(served):
    return served.client()


def chat(client, **options):
    given = {"model": "tea", "messages": ASK, "max_tokens": 6, "temperature": 0, **options}
    return client.chat.completions.create(**given)


def text_of(stream):
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def test_a(client):
    print(chat(client).model_dump_json())
    for c in chat(client, stream=True, n=2, stream_options={"include_usage": True}): print(c.model_dump_json(exclude_unset=True))
    print(client.completions.create(model="tea", prompt=["a b", "c"], logprobs=2, max_tokens=3).model_dump_json())
