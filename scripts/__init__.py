"""Programs for users; each is run as a file or a module."""
