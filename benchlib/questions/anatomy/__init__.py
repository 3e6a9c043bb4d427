"""Where do an image's time and memory go? (Notebook 02.)"""
