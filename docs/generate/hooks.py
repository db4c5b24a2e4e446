"""The hook of mkdocs that adds the pages which nobody writes."""

from __future__ import annotations

import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

# The references are those of this checkout, whatever else is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the references of config, commands and API, and pictures made of the code."""
    from docs.generate.references import generated_files

    for name, content in generated_files().items():
        files.append(File.generated(config, name, content=content))
    return files
