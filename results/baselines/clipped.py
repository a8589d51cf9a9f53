"""How many steps does --clip shorten? Trains as retrain.py does, with its flags, and prints a line per epoch for six epochs.

python results/baselines/clipped.py --arch resnet32 --loss LDAM-DRW --dataset data/cifar10 --imbalance 100 --out runs/clipped
"""

import statistics
import sys
from pathlib import Path

from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import retrain
from common import runtime


def main(args):
    norms, clip, epoch_done = [], nn.utils.clip_grad_norm_, runtime.Run.epoch_done

    def clip_and_keep(*rest, **kwargs):
        norms.append(clip(*rest, **kwargs).item())

    def count(run, *rest):
        epoch_done(run, *rest)
        clipped = sum(norm > args.clip for norm in norms)
        print(f"{clipped} of {len(norms)} steps are clipped; the median norm is {statistics.median(norms):.2f}", flush=True)
        norms.clear()
        if len(run.history) == 6:
            raise SystemExit

    nn.utils.clip_grad_norm_, runtime.Run.epoch_done = clip_and_keep, count
    retrain.main(args)


if __name__ == "__main__":
    main(retrain.parse_args())
