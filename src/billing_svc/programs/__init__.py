"""The programs: the server, the worker, the commands, `dev`, and the processes that supervise them.

May import every other area.
"""
