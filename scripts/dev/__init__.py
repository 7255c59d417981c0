"""Programs for those who work on Engram itself."""
