"""The actions of the budget search: what each of them offers within a limit of multiply-adds.

An action takes the builder of candidates, the present network and the limit, and yields its candidates: most often one,
and none where it cannot keep the limit.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from lrp_core.control.block_ranking import BlockChanges
from lrp_core.control.candidates import Candidate, CandidateBuilder
from lrp_core.control.early_exit import Exit, exits
from lrp_core.graph.blocks import identity_blocks
from lrp_core.graph.tracing import trace
from lrp_core.graph.truncation import Truncation

SLACK = (1, 2, 4)  # so many times the limit may a backbone cost that starts anew; chosen on development seeds


def remove_filters(build: CandidateBuilder, now: Candidate, limit: int, action: str = "filters") -> Iterator[Candidate]:
    """Yield the network without its least relevant filters, as many as the limit asks for."""
    order = build.removal_order(now)
    size = bisect_left(range(len(order)), -limit, key=lambda size: -now.multiply_adds(order[:size]))
    if now.multiply_adds(order[:size]) <= limit:
        yield build.without(action, now, order[:size])


def exit_earlier(build: CandidateBuilder, now: Candidate, limit: int) -> Iterator[Candidate]:
    """Yield the network up to an earlier exit: of those within the limit, the one with the least error."""
    found = exits(now.network.model.backbone, build.images, build.labels, build.fold)[:-1]
    if within := [exit_ for exit_ in found if exit_.multiply_adds <= limit]:
        exit_ = best_exit(within)
        depth = {layer.name: index for index, layer in enumerate(trace(build.backbone))}
        skipped = Truncation.parse(now.truncation).skipped
        before = tuple(name for name in skipped if depth[name] < depth[exit_])
        yield build.at_truncation("exit", now, Truncation(exit_, before))


def skip_block(build: CandidateBuilder, now: Candidate, limit: int, changes: BlockChanges) -> Iterator[Candidate]:
    """Yield the network without the residual block that changes least, and without filters where the limit asks for it.

    Args:
        build: makes candidates.
        now: the present network.
        limit: of multiply-adds.
        changes: how much each block changes.
    """
    backbone = now.network.model.backbone
    layers = trace(backbone)
    blocks = {name: branch for name, branch in identity_blocks(layers).items() if name != layers[-1].name}
    if blocks:
        by_block, truncation = changes(backbone, blocks, build.images), Truncation.parse(now.truncation)
        skipped = (*truncation.skipped, min(by_block, key=by_block.get))
        shorter = build.at_truncation("block", now, Truncation(truncation.exit, skipped))
        yield from [shorter] if shorter.multiply_adds() <= limit else remove_filters(build, shorter, limit, "block")


def start_anew(build: CandidateBuilder, choice: Sequence[Exit], limit: int, prune: bool) -> Iterator[Candidate]:
    """Yield backbones that have lost nothing but what comes after an exit, then filters where the limit asks for it.

    For each factor in :data:`SLACK`, of the exits that cost at most so many times the limit, the one with the least
    error.

    Args:
        build: makes candidates.
        choice: the exits to choose from.
        limit: of multiply-adds.
        prune: whether filters may be removed; if not, only those that keep the limit with all of theirs are yielded.
    """
    within = [[exit_ for exit_ in choice if exit_.multiply_adds <= times * limit] for times in SLACK]
    for name in dict.fromkeys(best_exit(some) for some in within if some):
        start = build.unpruned(name)
        if start.multiply_adds() <= limit:
            yield start
        elif prune:
            yield from remove_filters(build, start, limit, "start")


def best_exit(choice: Sequence[Exit]) -> str:
    """Return the name of the exit with the least squared error."""
    return min(choice, key=lambda exit_: exit_.squared_error).name
