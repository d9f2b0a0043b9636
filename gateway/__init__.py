"""The public face: REST in, jobs into the queue, events and pictures out. It keeps no state of its own."""
