"""Configuration: options, the command line, plugins by name, what identifies a run."""
