"""What scripts/report.py is made of: runs, tables, figures, the page."""
