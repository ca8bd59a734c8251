"""Drawing pictures with the ordinary diffusers pipeline, and the record of what was drawn."""
