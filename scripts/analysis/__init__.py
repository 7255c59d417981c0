"""Analysis of runs, in four steps: collect records, group them into settings, make rows, write tables.

run_set.py       collect and group: RunSet, Setting
pairing.py       compare two settings seed by seed
table.py         rows from columns; Table writes Markdown, LaTeX and CSV
study_tables.py  the general report's tables
figures.py       its figures
report_page.py   its HTML page (templates/)
paper_report.py  what the reports beside published numbers share; papers/ holds one file for each paper
"""
