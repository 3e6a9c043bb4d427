"""The room of notebook 07: how many cards, and what does a day cost?"""
