"""Studies that a shell script cannot express."""
