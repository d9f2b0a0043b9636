"""What training has come to: an analytic judge of pictures, and one figure per claim."""
