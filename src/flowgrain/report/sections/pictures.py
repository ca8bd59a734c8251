"""Generated pictures side by side with real ones."""

from collections.abc import Sequence

from flowgrain.report.arms import Arm, Picture, PictureKind
from flowgrain.report.page import GridRow, PictureGrid, Section
from flowgrain.report.pictures import Tile, picture_tile

TITLES: dict[PictureKind, str] = {"whole": "Whole pictures.", "close-up": "Close-ups."}


def pictures_section(arms: Sequence[Arm], rows_per_grid: int) -> Section | None:
    """A grid for each kind of prompt: real picture, then every arm with the same prompt and seed."""
    grids = tuple(grid for kind in TITLES if (grid := _grid(arms, kind, rows_per_grid)) is not None)
    if not grids:
        return None
    return Section(
        "pictures",
        "Pictures",
        "Every row is one prompt and one noise seed, the same for all arms: what differs is the model alone.",
        grids,
    )


def _grid(arms: Sequence[Arm], kind: PictureKind, limit: int) -> PictureGrid | None:
    by_arm = {arm.title: {(p.prompt, p.seed): p for p in arm.pictures if p.kind == kind} for arm in arms}
    shown = [title for title, pictures in by_arm.items() if pictures]
    keys = list(dict.fromkeys(key for pictures in by_arm.values() for key in pictures))
    if not keys:
        return None
    step = max(len(keys) // max(limit, 1), 1)
    chosen = keys[::step][:limit]
    seeds_differ = len({seed for _, seed in keys}) > 1
    any_reference = any(p.reference is not None for pictures in by_arm.values() for p in pictures.values())
    rows = []
    for prompt, seed in chosen:
        pictures = [by_arm[title].get((prompt, seed)) for title in shown]
        label = f"{prompt} (seed {seed})" if seeds_differ else prompt
        tiles = [_tile(picture, title) for picture, title in zip(pictures, shown, strict=True)]
        references = [_reference(pictures)] if any_reference else []
        rows.append(GridRow(label, (*references, *tiles)))
    taken = "all pictures" if len(chosen) == len(keys) else f"{len(chosen)} of {len(keys)} pictures, evenly spaced"
    return PictureGrid(
        TITLES[kind],
        f"Read across a row: {'the first picture is real, the others' if any_reference else 'all pictures'} were "
        f"generated ({taken}, not picked by eye).",
        (*(["reference"] if any_reference else []), *shown),
        tuple(rows),
    )


def _tile(picture: Picture | None, title: str) -> Tile | None:
    return None if picture is None else picture_tile(picture.path, f"{title}: {picture.prompt}")


def _reference(pictures: Sequence[Picture | None]) -> Tile | None:
    for picture in pictures:
        if picture is not None and picture.reference is not None:
            return picture_tile(picture.reference, f"reference: {picture.prompt}")
    return None
