"""How many people can a server serve? (Notebook 03.)"""
