"""The local launcher: every part of the system as child processes of one, under one folder.

It starts processes and asks them over HTTP how they are; it imports none of them.
"""
