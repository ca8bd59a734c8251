"""Write ATTRIBUTION.md: who drew what the bundle holds or learnt from, under which licence, and what was changed."""

from __future__ import annotations

from pathlib import Path

from . import domains, packages

_BASE = (
    (
        "Noto Emoji",
        packages.NOTO,
        "Google Inc",
        "https://github.com/googlefonts/noto-emoji",
        "Apache-2.0",
        "https://github.com/googlefonts/noto-emoji/blob/main/svg/LICENSE",
    ),
    (
        "Twemoji",
        packages.TWEMOJI,
        "Twitter, Inc and other contributors",
        "https://github.com/jdecked/twemoji",
        "CC-BY-4.0",
        "https://creativecommons.org/licenses/by/4.0/",
    ),
    (
        "Fluent Emoji Flat",
        packages.FLAT,
        "Microsoft Corporation",
        "https://github.com/microsoft/fluentui-emoji",
        "MIT",
        "https://github.com/microsoft/fluentui-emoji/blob/main/LICENSE",
    ),
)
_MOBILENET = (
    "The autoencoder and the text encoders were trained with the help of MobileNetV2 with ImageNet weights "
    "(torchvision, BSD-3-Clause, as packaged in `{name}` {version}); those weights are not in the bundle."
)

_MIT = """## MIT licence (Fluent Emoji)

Copyright (c) Microsoft Corporation.

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


def _entry(title: str, package: packages.Package, author: str, source: str, licence: str, url: str) -> str:
    return (
        f"### {title}\n\n- author: {author}, <{source}>\n- licence: [{licence}]({url})\n"
        f"- taken from: {package.client} package `{package.name}` {package.version}\n"
    )


def write(out: Path) -> None:
    """Write the file into the assets folder."""
    lines = ["# Attribution\n", "## Image domains (the pictures in `domains/`)\n"]
    for domain in domains.ALL:
        entry = _entry(domain.title, domain.package, domain.author, domain.source, domain.licence, domain.licence_url)
        lines.append(f"{entry}- folder: `domains/{domain.name}`\n- changed: {domain.changes}\n")
    lines.append("## Base styles (the pictures that the weights in `tiny-flux/` were trained on; none is included)\n")
    changed = "- changed: rasterised on white, cropped, learnt from\n"
    lines += [_entry(*fields) + changed for fields in _BASE]
    lines.append("## Helper\n")
    lines.append(_MOBILENET.format(name=packages.MOBILENET.name, version=packages.MOBILENET.version) + "\n")
    lines.append(_MIT)
    (out / "ATTRIBUTION.md").write_text("\n".join(lines))
