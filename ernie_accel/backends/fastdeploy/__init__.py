"""FastDeploy 2.x as an engine: a process group of our own that runs its ``LLM``, or a server that runs already.

``names.py`` has every mapping from our names to theirs. ``group_engine.py`` talks to the process group that
``group.py`` starts (``supervise.py`` and ``serve.py`` are the programs in it); ``remote_engine.py`` talks HTTP through
``server.py``; ``preflight.py`` looks before anything heavy starts.
"""
