"""Models with recurrent nets."""
