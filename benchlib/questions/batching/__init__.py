"""Is batching worth it here? (Notebook 04.)"""
