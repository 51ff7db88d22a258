"""Reading files that may be damaged or made to do harm: bounded in memory and time, checked before use."""
