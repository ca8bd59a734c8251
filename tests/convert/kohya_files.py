"""kohya's files for the tests of their conversion."""

from flowgrain.convert.kohya import convert_kohya


def convert_files(folder, train, data):
    """The draft of a training file and a data-set file with these contents."""
    (folder / "train.toml").write_text(train, encoding="utf-8")
    (folder / "data.toml").write_text(data, encoding="utf-8")
    return convert_kohya(folder / "train.toml", folder / "data.toml", None)


def outcomes(draft):
    """What became of each option."""
    return {entry.option: entry.outcome for entry in draft.entries}
