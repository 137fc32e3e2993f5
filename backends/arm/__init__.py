"""ARM kernel generators."""
