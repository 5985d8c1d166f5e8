"""Whether a candidate may replace what is in use: measured, decided, remembered."""
