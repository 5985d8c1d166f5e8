"""How a change is held back: penalties, replay and averages that know no engine and no config."""
