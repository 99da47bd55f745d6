"""The actions of the budget search: the candidates that each offers within a limit of multiply-adds.

An action takes the builder of candidates, the current network and the limit, and yields its candidates: usually one, or
none if it cannot meet the limit.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from lrp_core.control.block_ranking import BlockChanges
from lrp_core.control.candidates import Candidate, CandidateBuilder
from lrp_core.control.early_exit import Exit, exits
from lrp_core.graph.blocks import identity_blocks
from lrp_core.graph.tracing import trace
from lrp_core.graph.truncation import Truncation

SLACK = (1, 2, 4)  # a new start may cost these multiples of the limit; chosen on development seeds


def remove_filters(build: CandidateBuilder, now: Candidate, limit: int, action: str = "filters") -> Iterator[Candidate]:
    """Yield the network without its least relevant filters, as many as the limit requires."""
    order = build.removal_order(now)
    size = bisect_left(range(len(order)), -limit, key=lambda size: -now.multiply_adds(order[:size]))
    if now.multiply_adds(order[:size]) <= limit:
        yield build.without(action, now, order[:size])


def exit_earlier(build: CandidateBuilder, now: Candidate, limit: int) -> Iterator[Candidate]:
    """Yield the network up to an earlier exit: the one with the smallest error among those within the limit."""
    found = exits(now.network.model.backbone, build.images, build.labels, build.fold)[:-1]
    if within := [exit_ for exit_ in found if exit_.multiply_adds <= limit]:
        exit_ = best_exit(within)
        depth = {layer.name: index for index, layer in enumerate(trace(build.backbone))}
        skipped = Truncation.parse(now.truncation).skipped
        before = tuple(name for name in skipped if depth[name] < depth[exit_])
        yield build.at_truncation("exit", now, Truncation(exit_, before))


def skip_block(build: CandidateBuilder, now: Candidate, limit: int, changes: BlockChanges) -> Iterator[Candidate]:
    """Yield the network without the residual block that changes least, and without filters if the limit requires it.

    Args:
        build: makes candidates.
        now: the current network.
        limit: of multiply-adds.
        changes: measures how much each block changes.
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
    """Yield otherwise unpruned backbones that end at an exit, without filters if the limit requires it.

    For each factor in :data:`SLACK`, the exit is the one with the smallest error among those that cost at most that
    many times the limit.

    Args:
        build: makes candidates.
        choice: the exits to choose from.
        limit: of multiply-adds.
        prune: whether filters may be removed; if not, only backbones that meet the limit with all filters are yielded.
    """
    within = [[exit_ for exit_ in choice if exit_.multiply_adds <= times * limit] for times in SLACK]
    for name in dict.fromkeys(best_exit(some) for some in within if some):
        start = build.unpruned(name)
        if start.multiply_adds() <= limit:
            yield start
        elif prune:
            yield from remove_filters(build, start, limit, "start")


def best_exit(choice: Sequence[Exit]) -> str:
    """Return the name of the exit with the smallest squared error."""
    return min(choice, key=lambda exit_: exit_.squared_error).name
