"""Gather a run's results: summary.json, the table on the terminal, report.html.

    python -m eval.report configs/quickstart.py

Prints the table, and writes report.html and summary.json into the run's directory.
"""

from dynarag_jax.launch.program import main

if __name__ == "__main__":
    main("report")
