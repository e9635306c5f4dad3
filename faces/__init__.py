"""What stands behind the lesson, a subject a module; ``helpers.py`` is the map of it."""
