"""Which settings should I run? (Notebook 05.)"""
