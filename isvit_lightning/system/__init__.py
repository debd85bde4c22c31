"""The ground: processes, signals, memory and their faults."""
