"""Tables and figures of single papers, with the published numbers beside ours."""
