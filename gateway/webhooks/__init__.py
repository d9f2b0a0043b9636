"""Sending webhooks: to whom the operator allows, at an address that was looked at, until it was taken."""
