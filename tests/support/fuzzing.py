"""What fuzz tests share: how many examples, and JSON values of any kind."""

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

FUZZ = settings(
    max_examples=int(os.environ.get("IDML_ZOO_FUZZ", "300")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
LEAF = st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.floats() | st.text(max_size=8)
SHALLOW = LEAF | st.lists(LEAF, max_size=3) | st.dictionaries(st.text(max_size=8), LEAF, max_size=3)
JSON = SHALLOW | st.lists(SHALLOW, max_size=3) | st.dictionaries(st.text(max_size=8), SHALLOW, max_size=3)
