"""What every process of the system shares: contracts, the job queue, artifacts, media, settings, metrics, logs.

This room imports none of the others and none of the model libraries.
"""
