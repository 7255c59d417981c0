"""Programs that read or write the files of other projects."""
