"""Who waits, who runs with whom, and what a step costs. Ignorant of HTTP."""
