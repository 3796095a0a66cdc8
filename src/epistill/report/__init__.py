"""One self-contained HTML page from a study's report.json. Imports no torch."""
