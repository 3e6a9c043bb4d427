"""Did it get worse? (Notebook 06.)"""
