"""What the environment tells vLLM of its knobs."""

import pytest

from alignvec.errors import AlignvecError
from alignvec.serve.vllm.told import Told


@pytest.mark.parametrize("name", ["ALIGNVEC_SET", "ALIGNVEC_STATE", "ALIGNVEC_ROUTER"])
def test_what_a_way_does_not_read_is_refused_by_name(name):
    told = {"ALIGNVEC_VECTORS": "tea=there", name: "tea=1"}
    assert Told.read(told).way == "gate"
    with pytest.raises(AlignvecError, match=name):
        Told.read({**told, "ALIGNVEC_WAY": "resolver"})
    assert Told.read({**told, name: "", "ALIGNVEC_WAY": "resolver"}).way == "resolver"
