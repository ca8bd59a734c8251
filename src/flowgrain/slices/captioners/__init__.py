"""Captioners: what pictures and their close-ups show, in words."""

from flowgrain.slices.captioners.base import Captioner as Captioner
from flowgrain.slices.captioners.base import CaptionerConfig as CaptionerConfig
from flowgrain.slices.captioners.base import CaptionerContext as CaptionerContext
from flowgrain.slices.captioners.base import CaptionRequest as CaptionRequest
