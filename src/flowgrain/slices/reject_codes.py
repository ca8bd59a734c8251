"""What the codes of ``rejects.jsonl`` mean and what to do about each."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CodeMeaning:
    """One code in words."""

    meaning: str
    remedy: str


MEANINGS: dict[str, CodeMeaning] = {
    "unreadable": CodeMeaning(
        "the file is no picture, is damaged or cannot be opened", "replace or remove it; the reason says what is wrong"
    ),
    "duplicate_root": CodeMeaning(
        "another file of the same name but for its extension holds the same bytes", "nothing: it is there once"
    ),
    "bad_name": CodeMeaning("its name is not valid UTF-8", "rename the file"),
    "bad_sidecar": CodeMeaning(
        "a file beside it (caption, boxes, mask, settings) cannot be used", "correct the file that the reason names"
    ),
    "unlisted": CodeMeaning(
        "part of the source cannot be listed, such as the members after a tar's damage", "restore or repair the file"
    ),
    "no_region": CodeMeaning(
        "pre-split: no region was found in it", "no_region: whole_image keeps such images; or try another detector"
    ),
    "min_score": CodeMeaning("the detector was not sure enough", "lower the level's min_score if the boxes are good"),
    "outside": CodeMeaning("less than half of the box lies in its region", "nothing, or check the boxes' coordinates"),
    "duplicate": CodeMeaning("it repeats a better box of the same level (IoU above 0.7)", "nothing: it is there once"),
    "max_instances": CodeMeaning("there were better boxes enough", "raise the level's max_instances to use more"),
    "near_macro": CodeMeaning(
        "it nearly fills its region and would repeat it (dedupe_against_macro)", "nothing: the region itself is there"
    ),
    "suppressed": CodeMeaning(
        "a finer box shows nearly the same (IoU above iou_threshold)",
        "let the levels differ more: a greater expand or fraction for the coarser, a smaller one for the finer",
    ),
    "min_side": CodeMeaning(
        "a side of the box is shorter than min_side in source pixels", "larger sources, or a lower min_side"
    ),
    "max_upscale": CodeMeaning(
        "the box is too small: it would need a greater enlargement than max_upscale",
        "smaller targets for the level, larger sources, or a greater max_upscale",
    ),
    "lanczos_max": CodeMeaning(
        "the box needs more enlargement than interpolation may give it",
        "smaller targets for the level, larger sources, an upscaler, or a greater lanczos_max (which blurs)",
    ),
    "upscaler_max": CodeMeaning(
        "the box needs more enlargement than the upscaler's models give",
        "smaller targets for the level, larger sources, or an upscaler with a greater factor",
    ),
    "crashed": CodeMeaning("the process that looked at it died", "replace or remove the file: a decoder fails at it"),
    "vlm_refused": CodeMeaning("the model (or a filter) declined to look for boxes", "nothing, or ask another model"),
    "vlm_unusable": CodeMeaning("the model's answer held no boxes in the form asked for", "ask another model"),
    "vlm_rejected": CodeMeaning("the endpoint refused the request", "the reason says why"),
    "vlm_unreachable": CodeMeaning("the endpoint gave no answer", "run again: it is asked again"),
    "caption_refused": CodeMeaning("the model declined to write a caption", "write one beside the picture"),
    "caption_unusable": CodeMeaning("the model's answer was no caption", "write one beside the picture"),
    "caption_rejected": CodeMeaning("the endpoint refused the request for a caption", "the reason says why"),
    "caption_unreachable": CodeMeaning("the endpoint gave no caption", "run again: it is asked again"),
    "outside_mask": CodeMeaning("the mask is black everywhere in it", "nothing, or correct the mask"),
}
UNKNOWN = CodeMeaning("see the reason", "see the reason")


def meaning_of(code: str) -> CodeMeaning:
    """What a code means; a code of another version refers to the reason beside it."""
    return MEANINGS.get(code, UNKNOWN)
