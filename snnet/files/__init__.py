"""Files: whole or absent when written; bounded, and checked before use, when they may be damaged or made to do harm."""
