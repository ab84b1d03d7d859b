"""Is the quickstart's gain larger than the variation between seeds? Prints metrics of several seeds.

python benchmarks/quickstart_seeds.py --seeds 0 1 2 --output-dir outputs/seeds
"""

import argparse
import json
import statistics
import time
from pathlib import Path

from dinov3_hf.cli import main as dinov3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/seeds"))
    arguments = parser.parse_args()
    rows: dict[str, dict[int, dict[str, float]]] = {}
    for seed in arguments.seeds:
        folder, start = arguments.output_dir / str(seed), time.perf_counter()
        if dinov3(["quickstart", "--seed", str(seed), "--output-dir", str(folder), "--overwrite"]):
            raise SystemExit(f"the quickstart of seed {seed} failed")
        rows.setdefault("seconds", {})[seed] = {"model": time.perf_counter() - start}
        for result in json.loads((folder / "results.json").read_text())["results"]:
            for metric in result["metrics"]:
                rows.setdefault(f"{result['task']} {metric['metric']}", {})[seed] = metric
    print("| metric | " + " | ".join(f"seed {seed}" for seed in arguments.seeds) + " | mean | largest - smallest |")
    print("|" + "---|" * (3 + len(arguments.seeds)))
    for name, metrics in rows.items():
        for column in ("model", "random_init", "raw_pixels", "chance"):
            values = [metrics[seed][column] for seed in arguments.seeds if column in metrics[seed]]
            if values:
                numbers = [*values, statistics.mean(values), max(values) - min(values)]
                print(
                    f"| {name}, {column.replace('_', ' ')} | " + " | ".join(f"{value:.3f}" for value in numbers) + " |"
                )


if __name__ == "__main__":
    main()
