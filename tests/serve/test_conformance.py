"""The server against OpenAI's schema, and against its own."""

import pathlib
from contextlib import suppress

import llm_comply
import pytest
import schemathesis
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from live import live, tea_model
from llm_comply.config import ComplianceConfig
from llm_comply.result import TestStatus as Status
from llm_comply.runner import TestRunner as Runner
from llm_comply.schema import SpecLoader
from llm_comply.tests import get_tests
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

SPECIFICATION = pathlib.Path(llm_comply.__file__).parent / "specs" / "openai_chat.json"
# What the suite asks for and the server refuses by name.
REFUSED = {"chat-tool-calling": "tools", "chat-image-input": "messages[0].content[1].type"}


def says_hi(model):
    """Make a model that says `hi` and ends, whatever it is asked: each token follows its one
    predecessor, by far.
    """
    base, known = model.model, model.tokenizer.convert_tokens_to_ids
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()  # all that is left is the last token
        embedding = torch.nn.functional.normalize(base.get_input_embeddings().weight, dim=-1)
        head = base.get_output_embeddings().weight
        head.zero_()
        for before, after in (("<assistant>", "h"), ("h", "i"), ("i", "</s>")):
            head[known(after)] = 100 * embedding[known(before)]
    return model


@pytest.fixture(scope="module")
def served(tiny, nudged, tmp_path_factory):
    model = says_hi(tea_model(tiny(), nudged()))
    with live(model, tmp_path_factory.mktemp("conforms")) as here:
        yield here


SUITE = {case.id: case for case in get_tests("openai-chat")}


@pytest.mark.parametrize("name", SUITE)
def test_openais_schema_is_kept(served, name):
    config = ComplianceConfig(f"{served.url}/v1", "none", model="tea", verbose=True)
    runner = Runner(config, [SUITE[name]], SpecLoader(str(SPECIFICATION)))
    result = runner.run_one(SUITE[name])
    if name in REFUSED:
        error = result.response["error"]
        assert error["param"] == REFUSED[name]
        assert error["code"].startswith("unsupported")
    elif name == "chat-reasoning-summary":
        assert result.status == Status.SKIPPED  # it is for models of other names
    else:
        assert result.status == Status.PASSED, result.errors
        assert not result.warnings


CHECKS = [
    schemathesis.checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
]


def answerable(case):
    """What is right by the document, and asks for what is there and is quickly done."""
    if isinstance(case.body, dict) and "model" in case.body:
        small = {"max_tokens": 2, "max_completion_tokens": None, "n": 2, "best_of": None}
        ours = {"model": "tea", "knobs": {"tea": 0.5}, "profile": None, "logit_bias": None}
        for name, value in (small | ours).items():
            if name in case.body or name in ("max_tokens", "model"):
                case.body[name] = value
    return case


def statuses(cases):
    """Those of the answers to some requests, each as the document has it."""
    met = set()

    @settings(
        max_examples=8, deadline=None, derandomize=True, database=None,
        phases=[Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=cases)
    def conforms(case):
        met.add(case.call_and_validate(checks=CHECKS, timeout=30).status_code)

    with suppress(Unsatisfiable):  # nothing that it takes can be wrong
        conforms()
    return met


def test_the_openapi_document_is_true(served):
    document = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    modes = schemathesis.GenerationMode
    met = {}
    for found in document.exclude(path_regex="^/v1/(knobs|profiles)").get_all_operations():
        operation = found.ok()  # those left out: test_knob_routes.py
        right = operation.as_strategy(generation_mode=modes.POSITIVE).map(answerable)
        wrong = operation.as_strategy(generation_mode=modes.NEGATIVE)
        met[operation.path] = statuses(right) | statuses(wrong)
    for path in ("/v1/chat/completions", "/v1/completions"):
        assert {200, 400} <= met[path]
