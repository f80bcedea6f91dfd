"""What LitGPT's users type becomes what Lathe's type: command lines and recipes, by one table, `table`.

Knows no action's options and no tensor; runs nothing.
"""

from __future__ import annotations

from lathe.compat.words import Meant, action, meant, value

__all__ = ["Meant", "action", "meant", "value"]
