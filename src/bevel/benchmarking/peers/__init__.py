"""Other inference engines, each in an environment of its own, measured in turn with an artifact."""
