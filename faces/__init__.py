"""What would interrupt the lesson, one module for each subject; ``helpers.py`` is the map."""
