"""What the zoo adds to timm: importing, listing, building. Run by hand, ~2 minutes.

    python tests/benchmarks/zoo.py [--rounds 15] [--backbones resnet50 ...] [--out zoo.json]

Building is compared with `timm.create_model` of the same backbone, in turns in one process, and the medians' ratio is
printed; importing and listing run in processes of their own, beside an empty one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

STARTS = {
    "python": "pass",
    "import idml_zoo": "import idml_zoo",
    "list models": "import idml_zoo; assert len(idml_zoo.list_models('idml_*')) > 50",
    "import torch": "import torch",
    "import timm": "import timm",
}


def started(code: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--backbones", nargs="+", default=["resnet50", "vit_small_patch16_224", "tf_efficientnet_lite0"]
    )
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    found: dict[str, dict[str, float]] = {"starting, s": {}}
    for name, code in STARTS.items():
        found["starting, s"][name] = round(statistics.median(started(code) for _ in range(5)), 3)
    print(json.dumps(found), flush=True)

    import timm

    import idml_zoo

    for backbone in args.backbones:
        makers = {
            "timm": lambda b=backbone: timm.create_model(b, num_classes=0),
            "timm, a linear head of 1,024": lambda b=backbone: timm.create_model(b, num_classes=1024),
            "idml_zoo": lambda b=backbone: idml_zoo.create_model("idml", backbone=b),
        }
        seconds: dict[str, list[float]] = {name: [] for name in makers}
        for round_ in range(args.rounds + 1):
            for name, make in makers.items():
                start = time.perf_counter()
                make()
                if round_:  # the first one warms up
                    seconds[name].append(time.perf_counter() - start)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        found[backbone] = {name: round(value, 4) for name, value in medians.items()}
        found[backbone]["ratio"] = round(medians["idml_zoo"] / medians["timm"], 3)
        print(json.dumps({backbone: found[backbone]}), flush=True)
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
