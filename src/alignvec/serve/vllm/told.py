"""What the processes of an engine are told of its knobs: by the environment, and from there by
vLLM's own configuration, which reaches every worker and is part of the key of what it compiles.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from alignvec.errors import AlignvecError
from alignvec.knobs.setting import parse_pairs

KEY = "alignvec"  # in vLLM's additional_config
VECTORS = "ALIGNVEC_VECTORS"


@dataclass(frozen=True)
class Told:
    """What the environment says.

    Attributes:
        vectors: `ALIGNVEC_VECTORS`, by knob the folder or hub id of its vector.
        check_base: not `ALIGNVEC_ANY_BASE=1`.
        default: `ALIGNVEC_SET`, of requests over HTTP that say nothing.
        state: `ALIGNVEC_STATE`, the file of the profiles; empty: there are none.
        router: `ALIGNVEC_ROUTER`, the folder of a router that reads the text; empty: there is none.
    """

    vectors: Mapping[str, str]
    check_base: bool = True
    default: str = ""
    state: str = ""
    router: str = ""

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ) -> Told | None:
        """None where no knobs are asked for.

        Raises:
            AlignvecError: `ALIGNVEC_VECTORS` is not KNOB=PATH,...
        """
        vectors = environment.get(VECTORS, "").strip()
        if not vectors:
            return None
        try:
            pairs = parse_pairs(vectors, "vector", "KNOB=PATH, as in medical=medical-av")
        except AlignvecError as error:
            raise AlignvecError(f"{VECTORS}: {error}") from None
        return cls(
            pairs,
            environment.get("ALIGNVEC_ANY_BASE", "") in ("", "0"),
            environment.get("ALIGNVEC_SET", ""),
            environment.get("ALIGNVEC_STATE", ""),
            environment.get("ALIGNVEC_ROUTER", ""),
        )
