"""Conversations: from what a turn says, and the turns before it, to a request."""
