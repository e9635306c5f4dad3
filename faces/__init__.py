"""The lesson's tools, a subject a module; ``helpers.py`` is the map of them."""
