"""Analysis: read runs, make rows of numbers, and write tables, figures and pages of them."""
