"""Deliveries of webhooks: a durable queue beside the jobs, filled in the very steps in which the events happen."""
