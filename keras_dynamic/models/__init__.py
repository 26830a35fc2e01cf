"""Models that run only as far as they have to."""
