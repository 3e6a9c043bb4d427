"""What rows say: keeps runs, sums them up, draws one run. Ignorant of servers and load."""
