"""Look into a run: questions, sampled lists, rewards, what feedback changed; a local page.

    python -m eval.explore RUN
    python -m eval.explore RUN --port 9000

Says where the page is, and serves it until Ctrl-C. 100,000 rollouts are read in less than a minute,
once.
"""

from dynarag_jax.launch.program import main

if __name__ == "__main__":
    main("explore")
