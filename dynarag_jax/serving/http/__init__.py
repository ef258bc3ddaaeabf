"""The server: rerank endpoints of several makers, chat completions, lists explained.

``app`` puts the routes together and ``run`` serves them; everything here needs the extra [serve].
"""
