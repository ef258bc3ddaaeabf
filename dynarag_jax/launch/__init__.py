"""How stages are started, recorded, resumed, watched and stopped. It alone reads argv and prints.

``dynarag`` (``cli``) and ``python -m train.NAME`` (``program.main``) read the command line, set JAX
up, give the stage a ``Context`` and turn mistakes into one line and exit code 2. A stage knows
nothing of this but its context.
"""
