"""What was trained, at work: lists for anybody's documents in Python, and over HTTP.

``policies`` says what a policy is to whoever serves it; ``reranker`` is Python's way in, ``app``
the server's.
"""
