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

from common import data, engine, flags, runtime, spaces


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
    flags.add_bn_images(group)
    flags.add_run(parser, out="runs/search")
    args = parser.parse_args(argv)
    if args.crossovers + args.mutations > args.population:
        raise runtime.UserError(
            f"{args.crossovers} crossovers and {args.mutations} mutations exceed the population of {args.population}"
        )
    return args


def evolve(space, score, fits, seed, *, generations, population, crossovers, mutations, mutate_probability, topk):
    """Yields all scores so far, {architecture: score}, after each generation, in the order of evaluation.

    space: the module of a search space, or anything with its CHOICES and LIGHTEST. score: list of architectures -> their
    scores. fits: whether an architecture may be proposed; LIGHTEST must fit. No architecture is scored twice. A generation
    is smaller than the population if a bounded number of draws finds too few new architectures that fit.
    """
    scores, proposed = {}, set()
    for generation in range(generations):
        rng = np.random.default_rng([seed, generation])
        best = sorted(scores, key=scores.get, reverse=True)[:topk]  # stable: of equals, the one found first
        candidates = []

        def propose(count, draw, rng=rng, candidates=candidates):
            for _ in range(20 * count):
                if count:
                    arch = draw(rng)
                    if arch not in proposed and fits(arch):
                        candidates.append(arch)
                        proposed.add(arch)
                        count -= 1

        def parent(rng, best=best):
            return best[rng.integers(len(best))]

        if best:
            propose(mutations, lambda rng: spaces.mutate(parent(rng), space.CHOICES, mutate_probability, rng))
            propose(crossovers, lambda rng: spaces.crossover(parent(rng), parent(rng), rng))
        propose(population - len(candidates), lambda rng: spaces.sample(space.CHOICES, rng))
        if not scores and not candidates:  # random draws missed a tight limit, so mutation starts from the lightest
            candidates = [space.LIGHTEST]
            proposed.add(space.LIGHTEST)
        scores.update(zip(candidates, score(candidates), strict=True))
        yield scores


def read_scores(path, space):
    """{architecture: line} of the scores.jsonl of an interrupted search, {} if there is none."""
    if not os.path.exists(path):
        return {}
    with runtime.users_mistake(f"'{path}' is damaged, remove it to start anew"), open(path) as file:
        try:
            lines = [json.loads(line) for line in file]
            return {space.from_string(line["arch"]): {**line, "seconds": float(line["seconds"])} for line in lines}
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(error) from None


def main(args):
    # set-up
    device = runtime.setup(args.device, args.seed)
    run = runtime.Run(args, device)
    if run.finished:
        return
    checkpoint = runtime.load_checkpoint(args.supernet, "super-net")

    # model: before the data, since it tells at once whether the limit can be met
    with runtime.users_mistake(args.supernet):
        net = spaces.supernet_from(checkpoint).to(device)
    space = spaces.space(checkpoint["space"])
    macs = spaces.macs_counter(net, checkpoint["data"]["image_size"])
    lightest = macs(space.LIGHTEST) / 1e6
    if args.max_mmacs is not None and lightest > args.max_mmacs:
        raise runtime.UserError(f"no architecture has {args.max_mmacs:g} M MACs or fewer: the lightest has {lightest:.2f} M")

    # data
    with runtime.users_mistake():
        train, val = data.load(("train", "val"), **checkpoint["data"], root=args.data_root, device=device)
    with runtime.users_mistake(args.supernet):
        score_path = engine.scorer(net, train, val, args.bn_images, args.seed)

    # optimiser: evolution; the scores of an interrupted run are reused
    known = read_scores(run.path("scores.jsonl"), space)
    run.begin()
    if runtime.world() > 1:
        torch.distributed.barrier()  # rank 0 writes scores only after all ranks have read them

    def score(archs):
        unknown = [arch for arch in archs if arch not in known]
        for i in range(0, len(unknown), runtime.world()):
            start = time.perf_counter()
            chunk = unknown[i : i + runtime.world()]
            accuracies = torch.zeros(len(chunk), dtype=torch.float64, device=device)
            if runtime.rank() < len(chunk):
                accuracies[runtime.rank()] = score_path(chunk[runtime.rank()])
            accuracies = runtime.sum_over_ranks(accuracies).tolist()
            seconds = (time.perf_counter() - start) / len(chunk)
            for arch, accuracy in zip(chunk, accuracies, strict=True):
                known[arch] = {"arch": space.to_string(arch), "accuracy": accuracy, "seconds": seconds}
            run.write_lines("scores.jsonl", known.values())
        return [known[arch]["accuracy"] for arch in archs]

    # loop
    settings = ("generations", "population", "crossovers", "mutations", "mutate_probability", "topk")
    generations = evolve(
        space, score, lambda arch: args.max_mmacs is None or macs(arch) <= args.max_mmacs * 1e6, args.seed,
        **{name: getattr(args, name) for name in settings},
    )  # fmt: skip
    for generation, scores in enumerate(generations, start=1):
        seconds = sum(line["seconds"] for line in known.values())
        best = max(scores, key=scores.get)
        runtime.print0(
            f"generation {generation}/{args.generations}  best {scores[best]:.2f} %  {len(scores)} scored  "
            f"{len(scores) / seconds:.2f} a second  {seconds / generation * (args.generations - generation):.0f} s left"
        )

    # save
    ranked = sorted(scores, key=scores.get, reverse=True)[: args.topk]
    top = [{"arch": space.to_string(a), "accuracy": scores[a], "mmacs": macs(a) / 1e6} for a in ranked]
    run.finish({"best": top[0], "topk": top, "evaluated": len(scores), "seconds": seconds, "data": checkpoint["data"]})


if __name__ == "__main__":
    runtime.launch(parse_args, main)
