"""Names of the precisions that pretrained models compute in; apart, for configurations that are quick to import."""

from typing import Literal

Precision = Literal["float32", "float16", "bfloat16"]
