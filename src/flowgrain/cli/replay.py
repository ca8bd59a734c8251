"""``flowgrain replay``: run a recorded non-finite update again, without its data set."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from flowgrain.train.repro import Bundle, MicroBatchReport


def replay(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder nonfinite-update-... of a run.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings that win over the recorded recipe's."),
    ] = None,
    only: Annotated[str | None, typer.Option("--slice", metavar="ID", help="This slice alone.")] = None,
) -> None:
    """Run the update of a bundle again and print each slice's loss, t and the gradient norms.

    Examples:

        flowgrain replay runs/fox/nonfinite-update-000123

        flowgrain replay runs/fox/nonfinite-update-000123 --slice fox-7/micro2 precision=fp32

    Needs the model of the recipe, not the data set. Nothing is written.
    """
    from flowgrain.train.repro import only_slice, read_bundle
    from flowgrain.train.repro import replay as run_again

    recorded = read_bundle(bundle, overrides or [])
    chosen = recorded if only is None else only_slice(recorded, only)
    for line in _lines(chosen, run_again(chosen)):
        typer.echo(line)


def _lines(bundle: "Bundle", reports: "list[MicroBatchReport]") -> list[str]:
    info = bundle.info
    lines = [f"update {info['update']} of epoch {info['epoch']}, {bundle.precision}; recorded: {info['message']}"]
    for number, report in enumerate(reports):
        lines.append(f"micro-batch {number}: gradient norm {report.grad_norm:.6g}")
        for item in report.slices:
            parts = ", ".join(f"{name} {value:.6g}" for name, value in item.parts.items())
            lines.append(f"  {item.name}: t {item.t:.4f}, weight {item.weight:.6g}, loss {item.total:.6g} ({parts})")
    bad = sum(not report.finite for report in reports)
    outcome = f"reproduced in {bad} of {len(reports)} micro-batches" if bad else "not reproduced: everything is finite"
    return [*lines, outcome]
