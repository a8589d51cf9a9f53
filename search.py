"""Search a super-net by evolution for the architecture of the highest validation accuracy (Eq. 2, Guo et al. 2020).

    python search.py --supernet runs/p1/supernet.pt --out runs/search_p1
    torchrun --nproc_per_node=8 search.py --supernet runs/p1/supernet.pt --out runs/search_p1

The super-net's checkpoint names the data that it was adapted to, and the search validates on those (P0: on the source). Ranks
share the architectures, and the result does not depend on their number. Product: result.json, with the best and the top k.
Paper: 20 generations of 50.
"""

import json
import os
import time

import numpy as np
import torch

from common import data, flags, runtime, scoring, spaces


def parse_args(argv=None):
    parser = runtime.Parser(__doc__)
    group = parser.add_argument_group("search")
    group.add_argument("--supernet", required=True, help="supernet.pt of train_supernet.py or adapt.py")
    group.add_argument("--generations", type=flags.positive_int, default=20, help="generations of the search")
    group.add_argument("--population", type=flags.positive_int, default=50, help="architectures per generation")
    group.add_argument("--crossovers", type=flags.count, default=25, help="architectures made from two parents")
    group.add_argument("--mutations", type=flags.count, default=25, help="architectures made from one parent")
    group.add_argument("--mutate-probability", type=flags.fraction, default=0.1, help="probability that a gene mutates")
    group.add_argument("--topk", type=flags.positive_int, default=10, help="parents: the best K so far")
    group.add_argument("--max-mmacs", type=flags.positive, metavar="M", help="at most M million multiply-accumulates")
    flags.add_scoring(group)
    flags.add_run(parser, out="runs/search")
    args = parser.parse_args(argv)
    children = args.crossovers + args.mutations
    if children > args.population:
        raise runtime.UserError(f"{children} crossovers and mutations exceed the population of {args.population}")
    return args


def propose(space, scores, fits, rng, args):
    """The next generation, without the architectures that have scores. Fewer, if 20 draws for each find too few new ones.

    space: the module of a search space, or anything with its CHOICES and LIGHTEST. scores: {architecture: score} so far, in the
    order of evaluation. fits: whether an architecture may be proposed; LIGHTEST must fit.
    """
    best = sorted(scores, key=scores.get, reverse=True)[: args.topk]  # stable: of equals, the one found first
    proposed = []

    def parent():
        return best[rng.integers(len(best))]

    def add(count, draw):
        enough, tries = len(proposed) + count, 20 * count
        while len(proposed) < enough and tries:
            arch, tries = draw(), tries - 1
            if arch not in scores and arch not in proposed and fits(arch):
                proposed.append(arch)

    if best:
        add(args.mutations, lambda: spaces.mutate(parent(), space.CHOICES, args.mutate_probability, rng))
        add(args.crossovers, lambda: spaces.crossover(parent(), parent(), rng))
    add(args.population - len(proposed), lambda: spaces.sample(space.CHOICES, rng))
    if not best and not proposed:  # random draws missed a tight limit, so mutation starts from the lightest
        return [space.LIGHTEST]
    return proposed


def read_scores(path, space):
    """The lines of the scores.jsonl of an interrupted search, and {architecture: accuracy} in their order."""
    if not os.path.exists(path):
        return [], {}
    with runtime.reading(path, "a list of this search's scores (remove it to start anew)"), open(path) as file:
        types = {"generation": int, "arch": str, "accuracy": float, "seconds": float}
        lines = [{key: kind(json.loads(line)[key]) for key, kind in types.items()} for line in file]
        return lines, {space.from_string(line["arch"]): line["accuracy"] for line in lines}


def main(args):
    # set-up
    device = runtime.setup(args.device, args.seed)
    run = runtime.Run(args, device)
    if run.finished:
        return

    # model: before the data, since it tells at once whether the limit can be met
    checkpoint, net = spaces.load_supernet(args.supernet)
    net.to(device)
    space = spaces.space(checkpoint["space"])
    macs = spaces.macs_counter(net, checkpoint["data"]["image_size"])
    lightest = macs(space.LIGHTEST) / 1e6
    if args.max_mmacs is not None and lightest > args.max_mmacs:
        raise runtime.UserError(f"no architecture has {args.max_mmacs:g} M MACs or fewer: the lightest has {lightest:.2f} M")

    # data
    with runtime.user_errors():
        train, val = data.load(("train", "val"), **checkpoint["data"], root=args.data_root, device=device)
        score = scoring.scorer(net, train, val, args.bn_images, args.seed, args.own_classifier)

    # optimiser: evolution, from the generation after the last that an interrupted search has scored
    lines, scores = read_scores(run.path("scores.jsonl"), space)
    run.begin()

    def fits(arch):
        return args.max_mmacs is None or macs(arch) <= args.max_mmacs * 1e6

    # loop
    for generation in range(lines[-1]["generation"] + 1 if lines else 1, args.generations + 1):
        start = time.perf_counter()
        archs = propose(space, scores, fits, np.random.default_rng([args.seed, generation - 1]), args)
        accuracies = torch.zeros(len(archs), dtype=torch.float64, device=device)
        for i in range(runtime.rank(), len(archs), runtime.world()):  # the other ranks' stay 0
            accuracies[i] = score(archs[i])
        scores.update(zip(archs, runtime.sum_over_ranks(accuracies).tolist(), strict=True))
        shared = {"generation": generation, "seconds": (time.perf_counter() - start) / max(len(archs), 1)}
        lines += [{**shared, "arch": space.to_string(arch), "accuracy": scores[arch]} for arch in archs]
        run.write_lines("scores.jsonl", lines)
        best = max(scores.values())
        runtime.print0(f"generation {generation}/{args.generations}  best {best:.2f} %  {len(scores)} scored")

    # save
    seconds = sum(line["seconds"] for line in lines)
    ranked = sorted(scores, key=scores.get, reverse=True)[: args.topk]
    top = [{"arch": space.to_string(a), "accuracy": scores[a], "mmacs": macs(a) / 1e6} for a in ranked]
    run.finish({"best": top[0], "topk": top, "evaluated": len(scores), "seconds": seconds, "data": checkpoint["data"]})


if __name__ == "__main__":
    runtime.launch(parse_args, main)
