"""What people and programs use to reach a running system: REST client, `llmga` command, local launcher.

This room imports `shared.contracts` and nothing else of ours: it talks HTTP, and the launcher starts
processes.
"""
