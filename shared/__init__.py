"""What every process of the system shares: contracts, jobs, artifacts, media, settings, metrics and logs.

This room imports none of the others and none of the model libraries.
"""
