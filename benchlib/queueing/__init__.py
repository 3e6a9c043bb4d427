"""What a server would do at any load: its lane, fitted to a run, and long simulated queues."""
