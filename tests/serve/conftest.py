"""What tries the server as its clients do is an extra of its own (`clients`)."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("schemathesis") else ["test_conformance.py", "test_knob_routes.py"]
