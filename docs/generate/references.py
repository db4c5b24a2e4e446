"""Every generated file of the site by its name below docs/pages."""

from __future__ import annotations

from docs.generate.api import api_page
from docs.generate.commands import commands_page
from docs.generate.config import config_page
from docs.generate.pictures import flow_picture, ranks_picture


def generated_files() -> dict[str, str]:
    """Name and content of every file that the site has beside those in docs/pages."""
    return {
        "reference/config.md": config_page(),
        "reference/commands.md": commands_page(),
        "reference/api.md": api_page(),
        "pictures/ranks.svg": ranks_picture(),
        "pictures/flow.svg": flow_picture(),
    }
