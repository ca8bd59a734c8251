"""What is there more than once: near-duplicates across images and inside roots."""

from collections.abc import Mapping

from flowgrain.report.page import Block, Details, GridRow, Paragraph, PictureStrips, Section, Table
from flowgrain.report.slices_tiles import ABREAST, Tiles, plain
from flowgrain.report.wording import counted, number
from flowgrain.slices.duplicates import NEAR_BITS, NearGroup, NearGroups
from flowgrain.slices.statistics import RootView, Statistics

SHOWN_GROUPS = 12
_TILES = 5


def duplicates_section(
    statistics: Statistics, groups: NearGroups, views: Mapping[int, RootView], tiles: Tiles
) -> Section:
    """Groups of pictures that look the same, and slices that repeat others of their root.

    ``views``: the roots of the groups' members by their places among the hashes.
    """
    blocks: list[Block] = []
    if groups.count:
        blocks.append(_strips(groups, views, tiles))
        blocks.append(Details("All groups as a list", (_table(groups, views),)))
    else:
        blocks.append(Paragraph("No two pictures look the same."))
    blocks += _inside(statistics, tiles)
    return Section(
        "duplicates",
        "Near-duplicates",
        f"{counted(groups.pictures, 'picture')} in {counted(groups.count, 'group')} look like another one: the "
        f"perceptual hashes (pHash) of the roots' coarsest slices differ in at most {NEAR_BITS} of 64 bits. Flat "
        "pictures may be alike in this without showing the same.",
        tuple(blocks),
    )


def _strips(groups: NearGroups, views: Mapping[int, RootView], tiles: Tiles) -> PictureStrips:
    rows = []
    for group in groups.groups[:SHOWN_GROUPS]:
        members = [views[place] for place in group.members if place in views]
        shown = [tiles.of(view.slices[0], view.image) for view in members[:_TILES]]
        more = f", {group.size - _TILES} not shown" if group.size > _TILES else ""
        rows.append(GridRow(f"{group.size} pictures, {_likeness(members, group)}{more}", tuple(shown)))
    return PictureStrips(
        "Pictures that look the same.",
        f"The {min(len(groups.groups), SHOWN_GROUPS)} largest groups of {number(groups.count, 0)}.",
        tuple(rows),
    )


def _likeness(members: list[RootView], group: NearGroup) -> str:
    digests = {view.slices[0].image_sha1 for view in members}
    if len(digests) == 1 and len(members) > 1:
        return "the same bytes" if group.size == len(members) else "the same bytes as far as shown"
    return "alike"


def _table(groups: NearGroups, views: Mapping[int, RootView]) -> Table:
    rows = []
    for group in groups.groups:
        members = [views[place] for place in group.members if place in views]
        more = f"; and {group.size - len(members)} more" if group.size > len(members) else ""
        names = "; ".join(plain(view.image) for view in members) + more
        rows.append((number(group.size, 0), _likeness(members, group), names))
    return Table(
        "Groups.",
        "All." if len(groups.groups) == groups.count else f"The {len(groups.groups)} largest of {groups.count}.",
        ("pictures", "how alike", "images"),
        tuple(rows),
    )


def _inside(statistics: Statistics, tiles: Tiles) -> list[Block]:
    finer = [level for level in statistics.levels.values() if level.slices and level is not statistics.first_level]
    if not finer:
        return []
    blocks: list[Block] = [
        Table(
            "Inside roots.",
            f"Finer slices whose box overlaps the coarsest one by an IoU above {statistics.config.iou_threshold:g}, "
            "that look like it, or like another finer slice of the same root.",
            ("level", "slices", "repeat the whole by box", "by look alone", "look like another"),
            tuple(
                (
                    level.name,
                    number(level.slices, 0),
                    number(level.near_macro_by_box, 0),
                    number(level.near_macro - level.near_macro_by_box, 0),
                    number(level.repeats, 0),
                )
                for level in finer
            ),
            numeric=frozenset({1, 2, 3, 4}),
        )
    ]
    rows = []
    for level in finer:
        for kind, name in (("near macro", "repeats the whole"), ("repeats", "looks like another")):
            shown = tiles.examples(level.examples_of(kind)[:ABREAST])
            if shown:
                rows.append(GridRow(f"{level.name}: {name}", shown))
    if rows:
        blocks.append(PictureStrips("Examples.", "Slices that say again what another one says.", tuple(rows)))
    return blocks
