"""Learning-rate schedules and kept checkpoints of both trainers."""

import math

from flowgrain.convert.draft import Draft
from flowgrain.convert.options import Options

_MOST_KEPT = 50


def checkpoint_multiples(every: int, total: int) -> list[float]:
    """Shares of ``total`` at which a checkpoint is kept, the end included; the end alone where there are too many."""
    if every < 1 or total // every > _MOST_KEPT:
        return [1.0]
    shares = [round(step / total, 6) for step in range(every, total, every)]
    return [*sorted(set(shares) - {0.0, 1.0}), 1.0]


def write_schedule(options: Options, draft: Draft, total: int, name: tuple[str, str], warmup_default: int) -> None:
    """``schedule``; ``name`` is the scheduler's option and its default, ``total`` the updates of the run."""
    option, default = name
    kind = options.text(option, default) or default
    cited = options.cite(option)
    floor = _floor(options)
    if kind in ("constant", "constant_with_warmup", "linear", "cosine"):
        draft.convert(cited, "schedule.kind", kind.removesuffix("_with_warmup"))
    elif kind == "cosine_with_restarts" and _cycles(options) == 1:
        draft.convert(cited, "schedule.kind", "cosine", "one cycle: no restart")
    elif kind == "cosine_with_min_lr":
        draft.convert(cited, "schedule.kind", "cosine")
    elif kind == "polynomial":
        draft.convert(cited, "schedule.kind", "linear", "power 1")
    else:
        draft.complete("schedule.kind", "constant", cited.origin)
        draft.unsupported(cited, "there are constant, linear and cosine; constant is written")
    if floor is not None and draft.get("schedule.kind") != "constant":
        draft.convert(options.cite("lr_scheduler_min_lr_ratio"), "schedule.final", floor)
    elif options.given("lr_scheduler_min_lr_ratio"):
        draft.not_needed(options.cite("lr_scheduler_min_lr_ratio"), f"not read with {option} {kind}")
    for extra in ("lr_scheduler_num_cycles", "lr_num_cycles"):
        if options.given(extra):
            draft.not_needed(options.cite(extra), "read with cosine_with_restarts alone; there are no restarts here")
    for extra in ("lr_scheduler_power", "lr_power"):
        if options.given(extra):
            draft.not_needed(options.cite(extra), "read with polynomial alone; linear has power 1")
    _write_warmup(options, draft, total, kind, warmup_default)


def _write_warmup(options: Options, draft: Draft, total: int, kind: str, default: int) -> None:
    warmup = options.number("lr_warmup_steps", default) or 0
    if kind == "constant" and not options.active("lr_warmup_steps"):
        if options.given("lr_warmup_steps"):
            draft.not_needed(options.cite("lr_warmup_steps"), "none")
        return
    cited = options.cite("lr_warmup_steps")
    if 0 < warmup < 1:
        draft.convert(cited, "schedule.warmup", math.floor(warmup * total), f"a share there, of {total} updates")
    elif warmup:
        draft.convert(cited, "schedule.warmup", int(warmup))
    elif options.given("lr_warmup_steps"):
        draft.not_needed(cited, "none")


def _floor(options: Options) -> float | int | None:
    return options.number("lr_scheduler_min_lr_ratio")


def _cycles(options: Options) -> int:
    name = "lr_num_cycles" if options.given("lr_num_cycles") else "lr_scheduler_num_cycles"
    return options.integer(name, 1) or 1
