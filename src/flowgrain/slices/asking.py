"""The models behind endpoints that a bench asks: for boxes through detectors, for captions through a captioner."""

from collections.abc import Sequence
from dataclasses import replace

from flowgrain.data.captions import caption_beside
from flowgrain.slices.captioners import Captioner, CaptionerContext
from flowgrain.slices.captioners.apply import caption_roots, caption_slices
from flowgrain.slices.captioners.vlm import VlmCaptioner
from flowgrain.slices.cutting import RejectRecord
from flowgrain.slices.pieces import Cut, Examined, Fault, Picture, WorkSettings
from flowgrain.slices.scheme import Schemes
from flowgrain.vlm.asker import Asker, AskingForecast, Spending, Unanswered

Size = tuple[int, int]
CAPTION = "caption_"
"""Start of the codes of captions that a model did not give; the image itself is not rejected."""


class Models:
    """Captions of images and slices, and what became of all questions."""

    def __init__(self, settings: WorkSettings, schemes: Schemes, context: CaptionerContext):
        self._schemes = schemes
        self._config = settings.config.captioner
        self._captioner: Captioner | None = None
        if self._config is not None and settings.asks:
            self._captioner = self._config.build(context)
        self._asks = settings.asks
        self._roots: list[Size] = []
        self._slices: list[tuple[Size, Size]] = []

    @property
    def batch_size(self) -> int:
        """Images whose captions are best asked for together."""
        return 1 if self._captioner is None else self._captioner.batch_size

    @property
    def fingerprint(self) -> str:
        """Digest of what the captioner is told."""
        return "" if self._captioner is None else self._captioner.fingerprint()

    @property
    def spending(self) -> Spending:
        """What this process has asked."""
        return sum((asker.spending for _, asker in self._askers()), Spending())

    @property
    def forecast(self) -> AskingForecast | None:
        """What the questions that were not asked would take; None where nobody asks any."""
        forecasts = self._schemes.unasked_forecasts()
        if self._config is not None and not self._asks:
            forecasts.append(self._config.forecast(self._roots, self._slices))
        return sum(forecasts, AskingForecast()) if forecasts else None

    def close(self) -> None:
        """Close connections; a later question opens them again."""
        for _, asker in self._askers():
            asker.close()

    def caption_images(self, batch: Sequence[Examined], pictures: Sequence[Picture | Fault]) -> list[str | None]:
        """The caption of each image: from the file beside it, or the captioner's. None for what was not opened."""
        opened = [(index, picture) for index, picture in enumerate(pictures) if isinstance(picture, Picture)]
        captions: list[str | None] = [None] * len(batch)
        for index, _ in opened:
            captions[index] = caption_beside(batch[index].item)
        if self._captioner is not None:
            names, images = [batch[i].item.name for i, _ in opened], [picture.image for _, picture in opened]
            written = caption_roots(self._captioner, names, images, [captions[i] for i, _ in opened])
            for (index, _), caption in zip(opened, written, strict=True):
                captions[index] = caption
        return captions

    def finish(self, batch: Sequence[Examined], cuts: Sequence[Cut], captions: Sequence[str | None]) -> list[Cut]:
        """The cuts with the captioner's captions of their slices, and a reject for every useless answer."""
        return self._with_failures(batch, self._described(cuts, captions))

    def _described(self, cuts: Sequence[Cut], captions: Sequence[str | None]) -> list[Cut]:
        result = list(cuts)
        opened = [(index, cut.picture.image) for index, cut in enumerate(cuts) if cut.picture is not None]
        if self._captioner is None:
            if self._config is not None:
                self._count([(image.size, cuts[index]) for index, image in opened])
            return result
        records = [cuts[index].cuts.records for index, _ in opened]
        images, known = [image for _, image in opened], [captions[index] for index, _ in opened]
        described = caption_slices(self._captioner, images, records, known)
        for (index, _), own in zip(opened, described, strict=True):
            result[index] = replace(cuts[index], cuts=replace(cuts[index].cuts, records=own))
        return result

    def _count(self, cuts: Sequence[tuple[Size, Cut]]) -> None:
        """Remember what would have been asked about."""
        for size, cut in cuts:
            self._roots.append(size)
            self._slices += [((record.width, record.height), size) for record in cut.cuts.records if record.parent]

    def _with_failures(self, batch: Sequence[Examined], cuts: Sequence[Cut]) -> list[Cut]:
        silent: dict[str, list[tuple[str | None, Unanswered]]] = {}
        for level, asker in self._askers():
            for unanswered in asker.take_unanswered():
                silent.setdefault(unanswered.name, []).append((level, unanswered))
        if not silent:
            return list(cuts)
        return [_failed(each, cut, silent.get(each.item.name, [])) for each, cut in zip(batch, cuts, strict=True)]

    def _askers(self) -> list[tuple[str | None, Asker]]:
        """(level, None for captions) of everyone who asks."""
        askers: list[tuple[str | None, Asker]] = [(level, d.asker) for level, d in self._schemes.asking()]
        if isinstance(self._captioner, VlmCaptioner):
            askers.append((None, self._captioner.asker))
        return askers


def _failed(each: Examined, cut: Cut, silent: Sequence[tuple[str | None, Unanswered]]) -> Cut:
    rejects = tuple(
        RejectRecord(
            image=each.shown_name,
            level=level,
            code=item.code if level is not None else f"{CAPTION}{item.status}",
            reason=item.reason,
        )
        for level, item in silent
    )
    final = cut.final and all(item.final for _, item in silent)
    return replace(cut, cuts=replace(cut.cuts, rejects=cut.cuts.rejects + rejects), final=final)
