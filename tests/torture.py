"""Kills runs at random moments, starts them again, and counts results that differ from those of an undisturbed run.

    python tests/torture.py --runs 100          # about 40 minutes on two CPU cores
    python tests/torture.py --runs 20 --ranks 2

Every run is one of the four stages or rank_transfer.py on small generated images. It is ended one to three times by SIGKILL,
SIGTERM or SIGINT, and then run to its end. Exit status 1 if a result is lost or differs. Not part of the suite.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
ARCH = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|nor_conv_1x1~1|none~2|"


def make_images(root):
    rng = np.random.default_rng(0)
    for split, n in (("train", 40), ("val", 10)):
        for c in range(4):
            (root / split / f"class{c}").mkdir(parents=True)
            for i in range(n):
                pixels = np.clip(rng.normal(50 + 50 * c, 60, (32, 32, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / f"class{c}" / f"{i}.png")


def result(out):
    """What a finished run made, without the seconds it took."""
    made = {"result": {**json.loads((out / "result.json").read_text()), "seconds": 0, "supernet": ""}}
    for name in ("supernet.pt", "model.pt"):
        if (out / name).exists():
            weights = torch.load(out / name, weights_only=True)["net"]
            made["weights"] = {k: w.tolist() for k, w in weights.items()}
    if (out / "accuracies.jsonl").exists():
        made["lines"] = (out / "accuracies.jsonl").read_text()
    return made


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100, help="number of runs (default 100)")
    parser.add_argument("--ranks", type=int, default=1, help="processes of each run (default 1)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments (default 0)")
    args = parser.parse_args()
    place, rng = Path(tempfile.mkdtemp()), random.Random(args.seed)
    make_images(place / "images")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={args.ranks}"] if args.ranks > 1 else []

    def start(argv, out):
        call = [sys.executable, *torchrun, *map(str, argv), "--out", str(out)]
        return subprocess.Popen(call, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    data = ["--dataset", place / "images", "--imbalance", 3, "--batch-size", 8]
    shape = ["--channels", 4, "--cells", 1]
    plan = {
        "train": ["train_supernet.py", *shape, *data, "--epochs", 12, "--warmup", 0],
        "adapt": ["adapt.py", "--procedure", "P2", "--supernet", place / "train/supernet.pt", *data, "--epochs", 12],
        "keep": ["adapt.py", "--procedure", "P1", "--supernet", place / "train/supernet.pt", *data, "--epochs", 30,
                 "--features-every", 10],
        "search": ["search.py", "--supernet", place / "adapt/supernet.pt", "--generations", 4, "--population", 20,
                   "--crossovers", 10, "--mutations", 10],
        "retrain": ["retrain.py", "--arch", ARCH, *shape, *data, "--epochs", 16, "--warmup", 0],
        "rank": ["rank_transfer.py", *shape, "--archs", "random:5", "--datasets", f"{place}/images:1", f"{place}/images:4",
                 "--seeds", 0, 1, "--epochs", 2, "--warmup", 0, "--batch-size", 16],
    }  # fmt: skip
    expected, duration = {}, {}
    for name, argv in plan.items():
        begun = time.time()
        process = start(argv, place / name)
        output = process.communicate()[0]
        if process.returncode:
            sys.exit(f"{name} does not run at all:\n{output}")
        expected[name], duration[name] = result(place / name), time.time() - begun
        print(f"{name}: {duration[name]:.1f} s when undisturbed", flush=True)

    wrong = kills = 0
    for i in range(args.runs):
        name = list(plan)[i % len(plan)]
        out = place / f"{name}_{i}"
        for _ in range(rng.randint(1, 3)):
            process = start(plan[name], out)
            time.sleep(rng.uniform(0, duration[name]))
            process.send_signal(rng.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT)))
            process.communicate()
            kills += process.returncode != 0
            time.sleep(1 if args.ranks > 1 else 0)  # ranks whose torchrun was killed notice it on their own
        for _ in range(30):
            process = start(plan[name], out)
            output = process.communicate()[0]
            if "another process is working" not in output:
                break
            time.sleep(2)
        same = process.returncode == 0 and result(out) == expected[name]
        wrong += not same
        print(f"{i + 1}/{args.runs} {name}: {'the same' if same else 'DIFFERS OR IS LOST'}", flush=True)
        if not same:
            print(output, flush=True)
        shutil.rmtree(out, ignore_errors=True)
    shutil.rmtree(place)
    print(f"{args.runs} runs, ended early {kills} times: {wrong} differ or are lost")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
