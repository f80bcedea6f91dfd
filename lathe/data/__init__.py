"""Files and names become rows of tokens, in stages that can each say where they are; knows no model but its Layout."""
