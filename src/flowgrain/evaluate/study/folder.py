"""Opening a study folder: the seal is checked before anything else happens."""

from dataclasses import dataclass
from pathlib import Path

from flowgrain.config import load_config
from flowgrain.errors import DataError
from flowgrain.evaluate.study.config import StudyConfig
from flowgrain.evaluate.study.database import connect, database_url
from flowgrain.evaluate.study.plan import STUDY_NAME, Plan, read_plan
from flowgrain.evaluate.study.seal import verify
from flowgrain.evaluate.study.store import Store


@dataclass(frozen=True)
class Study:
    """A study whose seal holds, with its database."""

    folder: Path
    seal: str
    config: StudyConfig
    plan: Plan
    store: Store


def open_study(folder: Path, database: str | None, token_days: float = 60.0, create: bool = True) -> Study:
    """Check the seal of a study and open its database; the key is not read.

    Raises DataError where the seal is broken, or the database belongs to another study, cannot be reached or, unless
    ``create``, holds no study.
    """
    from sqlalchemy.exc import DBAPIError

    seal = verify(folder, key=False)
    config, _ = load_config(StudyConfig, folder / STUDY_NAME, [])
    plan = read_plan(folder)
    url = database_url(database, folder)
    shown = url.render_as_string(hide_password=True)
    if not create and url.drivername == "sqlite" and not Path(str(url.database)).exists():
        raise DataError(f"{shown}: no such database; 'flowgrain study serve' makes it, --database names another one")
    store = Store(connect(url), plan.participants, token_days)
    try:
        store.open(seal, create)
    except DBAPIError as error:
        raise DataError(f"{shown}: cannot be opened ({' '.join(str(error.orig).split())})") from None
    return Study(folder, seal, config, plan, store)
