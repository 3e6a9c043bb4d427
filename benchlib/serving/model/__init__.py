"""The SDXL pipeline: how it is loaded, made faster, and moved on by a step. Ignorant of queues."""
