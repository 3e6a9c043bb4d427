"""One app over several engines, each on a GPU of its own."""
