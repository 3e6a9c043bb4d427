"""What measures: when requests are due, what they ask, and the child process that sends them."""
