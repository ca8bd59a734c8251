"""What the header of a run's adapter says: ModelSpec, kohya's training metadata, and flowgrain's own entries."""

from collections import Counter

from flowgrain import __version__
from flowgrain.adapters.model_spec import ModelDescription, base_architecture, model_spec
from flowgrain.adapters.trained_path import TrainedPath, path_entries
from flowgrain.flow.variance_preserving import VariancePreserving
from flowgrain.train.schedule import Progress
from flowgrain.train.setup import Session


def adapter_header(session: Session, progress: Progress, date: str) -> dict[str, str]:
    """Header entries of the adapter after ``progress``; ``date`` is the run's start, which a resume does not change."""
    recipe, slices, path = session.recipe, session.dataset.slices, session.objective.path
    whole = [item.bucket for item in slices if item.level == "macro"] or [item.bucket for item in slices]
    described = ModelDescription(
        title=recipe.name,
        architecture=base_architecture(session.family),
        base_model=recipe.model.path,
        adapter=recipe.adapter,
        date=date,
        steps=progress.updates,
        images=len({item.root for item in slices}),
        learning_rate=recipe.optimizer.lr,
        learning_rates=recipe.optimizer.lrs,
        prediction_type=path.prediction if isinstance(path, VariancePreserving) else None,
        zero_terminal_snr=path.schedule.zero_terminal_snr if isinstance(path, VariancePreserving) else None,
        batch_size=recipe.tuples.batch_size,
        seed=recipe.seed,
        # the most frequent size of whole pictures; of equally frequent ones the largest
        resolution=max(Counter(whole).items(), key=lambda item: (item[1], item[0]))[0],
        trigger_phrase=recipe.data.trigger,
    )
    return {
        **model_spec(described),
        **path_entries(TrainedPath(*recipe.path.overrides)),
        "flowgrain_version": __version__,
        "flowgrain_recipe": recipe.name,
        "flowgrain_base_model": recipe.model.path,
        "flowgrain_updates": str(progress.updates),
    }
