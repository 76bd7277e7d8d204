"""Prints pip constraints that hold every runtime dependency of pyproject.toml at its lower bound.

    python3 .ci/lowest.py > lowest.txt
    PIP_CONSTRAINT=lowest.txt .ci/run

``>=2.7`` becomes ``==2.7.*``, with its last corrections; ``>=1.0.20`` becomes ``==1.0.20``. So a bound that no longer
holds makes the tests fail, instead of a user's program. Needs nothing but Python and pip.
"""

import re
import sys
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib

BOUND = re.compile(r"(?P<name>[\w.-]+)\s*>=\s*(?P<version>[\d.]+)\s*(?P<marker>;.*)?")


def lowest(pyproject: str) -> list[str]:
    """A constraint for each dependency.

    Raises:
        ValueError: a dependency without one lower bound.
    """
    constraints = []
    for dependency in tomllib.loads(pyproject)["project"]["dependencies"]:
        bound = BOUND.fullmatch(dependency)
        if bound is None:
            raise ValueError(f"{dependency!r} must read name>=version, so that its lower bound can be tested")
        version = bound["version"] + (".*" if bound["version"].count(".") < 2 else "")
        constraints.append(f"{bound['name']}=={version}{bound['marker'] or ''}")
    return constraints


if __name__ == "__main__":
    try:
        print("\n".join(lowest((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))))
    except ValueError as error:
        sys.exit(f"pyproject.toml: {error}")
