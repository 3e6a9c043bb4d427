"""A room for each question that a notebook answers: how it is measured, judged and drawn."""
